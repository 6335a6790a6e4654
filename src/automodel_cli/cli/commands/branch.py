"""``automodel branch``: a run that goes on from a checkpoint of another one."""

from __future__ import annotations

from pathlib import Path

import typer

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.commands.pretrain import start
from automodel_cli.cli.options import command
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import BranchOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.plain_text import for_shell
from automodel_cli.processes import own_rank


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
    worker.starting("branch: loading PyTorch ...", needs=None)
    from automodel_cli.recipes import branch as recipe

    file = recipe.begun(cfg, overrides)
    if file is None:
        file = _begin(cfg, overrides, invocation)
    if file is None or cfg.prepare:
        return 0
    run = load_config(PretrainConfig, file, trust=cfg.trust)
    trust = [word for name in cfg.trust for word in ("--trust", name)]
    same = Invocation(("pretrain", "llm", "--config", str(file), *trust), invocation.launch, invocation.debug)
    return start(run, same, dry_run=cfg.dry_run, trust=cfg.trust)


def _begin(cfg: BranchOptions, overrides: list[str], invocation: Invocation) -> Path | None:
    """Check the branch as a whole and make its folder; its configuration file, None after a dry run."""
    from automodel_cli.config.targets.instantiate import check_foreign
    from automodel_cli.recipes import branch as recipe
    from automodel_cli.recipes import launch
    from automodel_cli.recipes.pretrain import PretrainRecipe

    planned = recipe.plan(cfg, overrides)
    check_foreign(planned.cfg, trust=cfg.trust)
    processes = launch.processes(planned.cfg, invocation.launch) if invocation.wants_processes else 1
    with console.reporter("branch", lines_tell_progress=True) as reporter:
        shown = reporter if cfg.dry_run else Reporter()
        plan = PretrainRecipe(planned.cfg, trust=cfg.trust, reporter=shown).plan(processes)
        if not cfg.dry_run:
            return recipe.make(planned, plan.describe(), plan.schedule, reporter)
        for line in recipe.notes(planned, plan.schedule):
            reporter.say(line)
        return None


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
