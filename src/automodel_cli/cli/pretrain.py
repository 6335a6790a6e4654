"""``automodel pretrain llm``: parse, check, then hand over to the recipe or the launcher.

Everything that can be wrong with a configuration is said here, in the parent, before any process is started: phase 1
without torch, phase 2 after the import of what the file names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from automodel_cli.assembly.voice import Voice
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation, is_config_file, two_files
from automodel_cli.config.instantiate import check_foreign
from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.errors import ConfigError

COMMAND_OPTIONS = {
    "context_settings": {
        "help_option_names": ["-h", "--help"],
        "allow_extra_args": True,
        "ignore_unknown_options": True,
    },
    "options_metavar": "llm -c FILE [OPTIONS] [--section.key VALUE | section.key=VALUE]...",
    "epilog": "Any key of the file can be set with --section.key VALUE or section.key=VALUE; a bare --section.key is "
    "true. torchrun's flags (--nproc-per-node, --nnodes, --node-rank, --rdzv-..., --master-..., --max-restarts) may "
    "stand anywhere. docs/config.md lists all keys.",
}


def pretrain(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the run.", show_default=False)
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Admit code of your own (my_module, path/file.py) or of a hub repository. May be repeated.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an earlier run in the run folder aside and start over.")
    ] = False,
    profile: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Profile N updates after the first four: where their time goes, and a trace.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="compact|classic",
            help="Line of an update; classic is NeMo AutoModel's, for programs (default: compact).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan (sizes, steps, memory, data) and stop.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the effective configuration as YAML and stop.")
    ] = False,
) -> int:
    """Train a language model as a configuration file says; a run found in the run folder is resumed."""
    file, overrides = file_and_overrides(config, list(context.args))
    overrides += [] if log_format is None else [f"--logging.format={log_format}"]
    if file is None and not overrides:
        raise ConfigError("no configuration given", "automodel pretrain llm -c cfg.yaml")
    cfg = load_config(PretrainConfig, file, overrides, trust=trust or ())
    if print_config:
        console.say(to_yaml(cfg).rstrip())
        return 0
    worker.starting("pretrain llm: loading PyTorch ...")
    check_foreign(cfg, trust=trust or ())
    invocation = context.obj if isinstance(context.obj, Invocation) else Invocation(())
    more: dict[str, Any] = {"dry_run": dry_run, "trust": tuple(trust or ()), "profile": profile}
    if invocation.wants_processes:
        _refuse_launch(invocation, fresh)
        from automodel_cli.recipes import launch

        if dry_run:
            more["processes"] = launch.processes(cfg, invocation.launch)
        elif (code := _launch(cfg, invocation)) is not None:
            return code
    return _run(cfg, fresh=fresh, **more)


def file_and_overrides(config: Path | None, tokens: list[str]) -> tuple[Path | None, list[str]]:
    """Take the domain and a positional file from the tokens; what is left over are overrides.

    Raises:
        ConfigError: another domain, or two files.
    """
    if tokens and tokens[0] == "llm":
        tokens = tokens[1:]
    elif tokens and not tokens[0].startswith("-") and "=" not in tokens[0] and not is_config_file(tokens[0]):
        raise ConfigError(
            f"cannot pretrain {tokens[0]!r}", "the command is automodel pretrain llm -c cfg.yaml"
        )
    return config_file(config, tokens)


def config_file(config: Path | None, tokens: list[str]) -> tuple[Path | None, list[str]]:
    """The file of ``-c`` or the one in front of the overrides, and the overrides.

    Raises:
        ConfigError: there are both.
    """
    if not tokens or not is_config_file(tokens[0]):
        return config, tokens
    if config is not None:
        raise two_files(config, tokens[0])
    return Path(tokens[0]), tokens[1:]


def _run(cfg: PretrainConfig, *, fresh: bool, **more: Any) -> int:
    from automodel_cli.recipes import pretrain as recipe

    fresh = fresh and not worker.is_started_again()
    if worker.rank() > 0:
        return recipe.run(cfg, fresh=fresh, **more)
    with console.voice("training", lines_tell_progress=True) as voice:
        return recipe.run(cfg, fresh=fresh, voice=voice, **more)


def _refuse_launch(invocation: Invocation, fresh: bool) -> None:
    """Check that the launch flags go with where they are given.

    Raises:
        ConfigError: a launcher has already started several processes, and each would start more.
    """
    if worker.launched_by() == "torchrun":
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

    debug = ["--debug"] if invocation.debug else []
    return launch.run(cfg, invocation.launch, [*invocation.arguments, *debug], voice=Voice(say=console.say))
