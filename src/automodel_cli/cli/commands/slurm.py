"""``automodel slurm``: a command line as a batch file."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation, parse_argv
from automodel_cli.cli.commands.pretrain import file_and_overrides, pretrain
from automodel_cli.cli.options import command
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import SlurmOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError


@command(
    SlurmOptions,
    file=False,
    settings={"allow_extra_args": True, "allow_interspersed_args": False},
    usage="[OPTIONS] pretrain llm -c FILE [--section.key VALUE]...",
    examples=(
        "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml > job.sh",
        "automodel slurm --time 2-00:00:00 --nnodes 4 --nproc-per-node 8 --submit pretrain llm -c cfg.yaml",
    ),
    epilog="Launch flags (--nnodes N, --nproc-per-node N, ...) may be given anywhere, as without slurm: automodel help "
    "launch.",
)
def slurm(cfg: SlurmOptions, context: typer.Context) -> int:
    """Write a Slurm batch file for a run that saves before its time limit and continues in the next job."""
    from automodel_cli.recipes import slurm as recipe

    launch = context.obj.launch if isinstance(context.obj, Invocation) else {}
    words = list(parse_argv(context.args).arguments)
    run = _checked(words)
    job = recipe.BatchJob(
        command=[sys.executable, "-P", "-m", "automodel_cli", *words],
        flags=launch,
        name=cfg.job_name or recipe.plain_name(Path(run.checkpoint.checkpoint_dir).name) or "automodel",
        time=cfg.time,
        signal=recipe.choose_signal(run.step_scheduler.preemption_signal),
        lead_s=cfg.lead,
        gpus=cfg.gpus_per_node,
        logs=Path(cfg.logs),
        options=_options(cfg.partition, cfg.account, cfg.sbatch),
        setup=cfg.setup,
    )
    recipe.run(job, output=Path(cfg.output) if cfg.output else None, submit=cfg.submit, say=console.say)
    return 0


def _checked(words: list[str]) -> PretrainConfig:
    """The configuration of the command that will run, checked now rather than when the job starts."""
    if words[:1] != ["pretrain"]:
        raise ConfigError(
            "the command of the job is missing", "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml"
        )
    with pretrain.make_context("pretrain", words[1:]) as context:
        options, tokens = context.params, list(context.args)
    if options["fresh"]:
        raise ConfigError(
            "--fresh in a job that may be started again would start over each time", "leave it out"
        )
    file, overrides = file_and_overrides(options["config"], tokens)
    if file is None and not overrides:
        raise ConfigError(
            "no configuration given", "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml"
        )
    return load_config(PretrainConfig, file, overrides, trust=options["trust"] or ())


def _options(partition: str | None, account: str | None, further: Sequence[str]) -> dict[str, str]:
    found = {name: value for name, value in (("partition", partition), ("account", account)) if value}
    for item in further:
        name, equals, value = item.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ConfigError(
                f"--sbatch: expected NAME=VALUE, found {item!r}", "for example --sbatch qos=long"
            )
        found[name] = value if equals else ""
    return found
