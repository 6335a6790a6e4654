"""``automodel slurm``: a command line as a batch file."""

from __future__ import annotations

import sys
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
    from automodel_cli.launch.batch_file import plain_name
    from automodel_cli.recipes import slurm as recipe

    launch = Invocation.of(context).launch
    words = list(parse_argv(context.args).arguments)
    run = _checked(words)
    name = cfg.job_name or plain_name(Path(run.checkpoint.checkpoint_dir).name) or "automodel"
    signal = recipe.choose_signal(run.step_scheduler.preemption_signal)
    command = [sys.executable, "-P", "-m", "automodel_cli", *words]
    recipe.run(recipe.BatchJob(cfg, command, launch, name, signal), say=console.say)
    return 0


def _checked(words: list[str]) -> PretrainConfig:
    """The configuration of the command that will run, checked now rather than when the job starts."""
    example = "automodel slurm --nproc-per-node 8 pretrain llm -c cfg.yaml"
    if words[:1] != ["pretrain"]:
        raise ConfigError("the command of the job is missing", example)
    with pretrain.make_context("pretrain", words[1:]) as context:
        options, tokens = context.params, list(context.args)
    if options["fresh"]:
        raise ConfigError("--fresh in a job that may be started again would start over each time", "leave it out")
    file, overrides = file_and_overrides(options["config"], tokens)
    if file is None and not overrides:
        raise ConfigError("no configuration given", example)
    return load_config(PretrainConfig, file, overrides, trust=options["trust"] or ())
