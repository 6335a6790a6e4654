"""``automodel slurm``: the command one would type, as a batch file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation, parse_argv
from automodel_cli.cli.pretrain import file_and_overrides
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.errors import ConfigError

COMMAND_OPTIONS = {
    "context_settings": {
        "help_option_names": ["-h", "--help"],
        "allow_extra_args": True,
        "allow_interspersed_args": False,
    },
    "options_metavar": "[OPTIONS] pretrain llm -c FILE [--section.key VALUE]...",
    "epilog": "--nnodes N, --nproc-per-node N and torchrun's other flags may stand anywhere, as without slurm.",
}
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")


def slurm(
    context: typer.Context,
    time: Annotated[
        str, typer.Option(help="Time limit, as sbatch writes it.", metavar="HH:MM:SS")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition.", show_default=False)] = None,
    account: Annotated[str | None, typer.Option(help="Account.", show_default=False)] = None,
    job_name: Annotated[
        str | None, typer.Option(help="Name; the file's by default.", show_default=False)
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(help="GPUs of a machine; 0 for none. By default one per process.", show_default=False),
    ] = None,
    lead: Annotated[
        int, typer.Option(help="Seconds that a run is told ahead of its end, to save.", min=10)
    ] = 300,
    logs: Annotated[Path, typer.Option(help="Folder for the job's output.")] = Path("logs"),
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A further option of sbatch. May be repeated.", show_default=False
        ),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE", help="A line of shell before the launch. May be repeated.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; stdout without it.")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
) -> int:
    """Write a batch file for Slurm that trains, saves before its time is over, and goes on in the next job."""
    from automodel_cli.recipes import slurm as recipe

    launch = context.obj.launch if isinstance(context.obj, Invocation) else {}
    words = list(parse_argv(context.args).arguments)
    cfg = _checked(words)
    if not _TIME.fullmatch(time):
        raise ConfigError(f"--time: expected minutes, HH:MM:SS or D-HH:MM:SS, found {time!r}")
    job = recipe.BatchJob(
        command=[sys.executable, "-P", "-m", "automodel_cli", *words],
        flags=launch,
        name=job_name or recipe.plain_name(Path(cfg.checkpoint.checkpoint_dir).name) or "automodel",
        time=time,
        signal=recipe.choose_signal(cfg.step_scheduler.preemption_signal),
        lead_s=lead,
        gpus=gpus_per_node,
        logs=logs,
        options=_options(partition, account, sbatch or []),
        setup=setup or (),
    )
    recipe.run(job, output=output, hand_in=submit, say=console.say)
    return 0


def _checked(words: list[str]) -> PretrainConfig:
    """The configuration of the command that will run, checked now rather than when the job starts."""
    if words[:1] != ["pretrain"]:
        raise ConfigError(
            "what should the job run?", "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml"
        )
    config: Path | None = None
    rest: list[str] = []
    trust: list[str] = []
    tokens = iter(words[1:])
    for token in tokens:
        name, equals, value = token.partition("=")
        if name in ("-c", "--config", "--trust"):
            value = value if equals else next(tokens, "")
            config, trust = (config, [*trust, value]) if name == "--trust" else (Path(value), trust)
        elif token != "--fresh":
            rest.append(token)
        else:
            raise ConfigError(
                "--fresh in a job that may be started again would start over each time", "leave it out"
            )
    file, overrides = file_and_overrides(config, rest)
    if file is None and not overrides:
        raise ConfigError(
            "no configuration given", "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml"
        )
    return load_config(PretrainConfig, file, overrides, trust=trust)


def _options(partition: str | None, account: str | None, further: list[str]) -> dict[str, str]:
    found = {name: value for name, value in (("partition", partition), ("account", account)) if value}
    for item in further:
        name, equals, value = item.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ConfigError(
                f"--sbatch: expected NAME=VALUE, found {item!r}", "for example --sbatch qos=long"
            )
        found[name] = value if equals else ""
    return found
