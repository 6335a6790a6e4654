"""``automodel pretrain llm``: parsing and checks, then the recipe or the launcher.

Everything that can be wrong with a configuration is said here, in the parent, before any process is started: phase 1
without torch, phase 2 after the import of what the file names.
"""

from __future__ import annotations

import os
from typing import Any

import typer

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation, is_config_file, two_files
from automodel_cli.cli.options import command
from automodel_cli.config.horizon import horizon_of
from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.options import PretrainOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign
from automodel_cli.errors import ConfigError
from automodel_cli.processes import own_rank


@command(
    PretrainOptions,
    file=False,
    overrides=True,
    usage="llm -c FILE [OPTIONS] [--section.key VALUE | section.key=VALUE]...",
    examples=(
        "automodel pretrain llm -c cfg.yaml --dry-run",
        "automodel cfg.yaml --nproc-per-node 8 --optimizer.lr 3e-4 step_scheduler.max_steps=1000",
    ),
    epilog="""Any key of the file can be set with --section.key VALUE or section.key=VALUE; a bare --section.key is
    true. automodel explain KEY explains a key, docs/config.md lists all of them.

    Launch flags (--nproc-per-node, --nnodes, ...) may be given anywhere: automodel help launch.""",
)
def pretrain(cfg: PretrainOptions, context: typer.Context) -> int:
    """Train a language model as a configuration file says; a run found in the run folder is resumed."""
    options, trust = cfg, cfg.trust
    file, overrides = file_and_overrides(options.config, list(context.args))
    overrides += [f"--logging.format={options.log_format}"] if options.log_format else []
    if file is None and not overrides:
        raise ConfigError("no configuration given", "automodel pretrain llm -c cfg.yaml")
    run = load_config(PretrainConfig, file, overrides, trust=trust)
    if options.print_config:
        console.say(to_yaml(run).rstrip())
        return 0
    worker.starting("pretrain llm: loading PyTorch ...")
    more = {"profile": options.profile, "accept_data_change": options.accept_data_change}
    return start(run, Invocation.of(context), fresh=options.fresh, dry_run=options.dry_run, trust=trust, **more)


def start(
    cfg: PretrainConfig, invocation: Invocation, *, fresh: bool = False, dry_run: bool = False, **more: Any
) -> int:
    """Train here, or in the processes that the launch flags ask for; the exit code.

    Raises:
        ConfigError: a target or a launch flag is wrong; nothing was started.
    """
    horizon_of(cfg)  # a budget without an update is refused before anything is started
    check_foreign(cfg, trust=more.get("trust", ()))
    if invocation.wants_processes:
        _refuse_launch(invocation, fresh)
        from automodel_cli.recipes import launch

        if dry_run:
            more["processes"] = launch.processes(cfg, invocation.launch)
        elif (code := _launch(cfg, invocation)) is not None:
            return code
    return _run(cfg, fresh=fresh, dry_run=dry_run, **more)


def file_and_overrides(config: str | None, tokens: list[str]) -> tuple[str | None, list[str]]:
    """Take the domain and a positional file from the tokens; what is left over are overrides.

    Raises:
        ConfigError: another domain, or two files.
    """
    if tokens and tokens[0] == "llm":
        tokens = tokens[1:]
    elif tokens and not tokens[0].startswith("-") and "=" not in tokens[0] and not is_config_file(tokens[0]):
        raise ConfigError(f"cannot pretrain {tokens[0]!r}", "the command is automodel pretrain llm -c cfg.yaml")
    return config_file(config, tokens)


def config_file(config: str | None, tokens: list[str]) -> tuple[str | None, list[str]]:
    """The file of ``-c`` or the one in front of the overrides, and the overrides.

    Raises:
        ConfigError: there are both.
    """
    if not tokens or not is_config_file(tokens[0]):
        return config, tokens
    if config is not None:
        raise two_files(config, tokens[0])
    return tokens[0], tokens[1:]


def _run(cfg: PretrainConfig, *, fresh: bool, **more: Any) -> int:
    from automodel_cli.recipes import pretrain as recipe

    fresh = fresh and not worker.is_started_again()
    if worker.rank() > 0:
        return recipe.run(cfg, fresh=fresh, **more)
    with console.reporter("training", lines_tell_progress=True) as reporter:
        return recipe.run(cfg, fresh=fresh, reporter=reporter, **more)


def _refuse_launch(invocation: Invocation, fresh: bool) -> None:
    """Check that the launch flags go with where they are given.

    Raises:
        ConfigError: a launcher has already started several processes, and each would start more.
    """
    if own_rank().launcher == "torchrun":
        flags = " ".join(f"--{flag} {value}" for flag, value in invocation.launch.items())
        raise ConfigError(
            f"{flags}: this is already one of {os.environ['WORLD_SIZE']} processes of another launcher",
            "leave the launch flags out, or start automodel without the other launcher",
        )
    if fresh and ":" in invocation.launch.get("nnodes", ""):
        raise ConfigError(
            "--fresh with --nnodes MIN:MAX: each machine that joins would start over",
            "move the run folder aside yourself, or start without --fresh in another one",
        )


def _launch(cfg: PretrainConfig, invocation: Invocation) -> int | None:
    """Start the processes that the launch flags ask for; None where that is this one."""
    from automodel_cli.recipes import launch

    return launch.run(cfg, invocation.launch, invocation.of_workers, reporter=Reporter(say=console.say))
