"""``automodel branch``: a run that goes on from a checkpoint of another one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import typer

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.commands.pretrain import start
from automodel_cli.cli.options import command
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import BranchOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign
from automodel_cli.errors import ConfigError
from automodel_cli.plain_text import for_shell
from automodel_cli.processes import own_rank

if TYPE_CHECKING:
    from automodel_cli.assembly.facts import Facts
    from automodel_cli.train.schedules import Schedule


@command(
    BranchOptions,
    arguments=("run",),
    file=False,
    overrides=True,
    usage="RUN[@STEP] --into DIR [--cooldown X | -c MORE.yaml] [OPTIONS] [--section.key VALUE]...",
    examples=(
        "automodel branch run@400 --into cooled --cooldown 0.2 --dry-run",
        "automodel branch run --into longer step_scheduler.max_steps=20000 --nproc-per-node 2",
    ),
    epilog="""Weights, optimizer and position in the data are those of the checkpoint; the trunk is not changed. The
    same command goes on with a branch that was stopped, as does automodel pretrain llm -c DIR/config.yaml.

    automodel inspect-ckpt RUN --tree shows all branches of a run.""",
)
def branch(cfg: BranchOptions, context: typer.Context) -> int:
    """Go on from a checkpoint of a run in another folder, by another schedule, length or mixture."""
    invocation, overrides = Invocation.of(context), list(context.args)
    _refuse_other_processes(cfg, invocation)
    worker.starting("branch: loading PyTorch ...")
    from automodel_cli.recipes import branch as recipe

    with console.reporter("branch", lines_tell_progress=True) as reporter:
        file = recipe.run(cfg, overrides, partial(_look, invocation=invocation, trust=cfg.trust), reporter)
    if file is None or cfg.prepare:
        return 0
    run = load_config(PretrainConfig, file, trust=cfg.trust)
    trust = [word for name in cfg.trust for word in ("--trust", name)]
    same = Invocation(("pretrain", "llm", "--config", str(file), *trust), invocation.launch, invocation.debug)
    return start(run, same, dry_run=cfg.dry_run, trust=cfg.trust)


def _look(
    run: PretrainConfig, reporter: Reporter, *, invocation: Invocation, trust: Sequence[str]
) -> tuple[Facts, Schedule]:
    """Plan a run as a dry run does."""
    from automodel_cli.recipes import launch
    from automodel_cli.recipes.pretrain import PretrainRecipe

    check_foreign(run, trust=trust)
    processes = launch.processes(run, invocation.launch) if invocation.wants_processes else 1
    plan = PretrainRecipe(run, trust=tuple(trust), reporter=reporter).plan(processes)
    return plan.describe(), plan.schedule


def _refuse_other_processes(cfg: BranchOptions, invocation: Invocation) -> None:
    """Check that this process alone makes the folder.

    Raises:
        ConfigError: there are several, of another launcher or on several machines.
    """
    if own_rank().size > 1 or invocation.launch.get("nnodes", "1") != "1":
        raise ConfigError(
            "a branch is made by one process on one machine",
            f"make it with --prepare, then start automodel pretrain llm -c {for_shell(cfg.into)}/config.yaml on all",
        )
