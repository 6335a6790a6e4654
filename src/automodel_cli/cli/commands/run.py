"""``automodel run``: a file of commands, one after another."""

from __future__ import annotations

import typer

from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation, parse_argv
from automodel_cli.cli.options import command
from automodel_cli.config.schema.pipeline import PipelineOptions
from automodel_cli.config.schema.sweep import LAUNCH_IN_FILES
from automodel_cli.errors import ConfigError

_NOT_IN_FILES = ("run", "slurm")  # a batch file has lines of shell in it


@command(
    PipelineOptions,
    arguments=("pipeline",),
    file=False,
    examples=(
        "automodel run configs/chat_tiny.yaml",
        "automodel run configs/chat_tiny.yaml --from-step midtrain",
    ),
    epilog="""Launch flags (--nproc-per-node 8) go to the training steps. Exit codes: 0 all is done, 1 a step failed,
    75 interrupted: the same command goes on.""",
)
def run(cfg: PipelineOptions, context: typer.Context) -> None:
    """Run the commands of a file one after another, from text to a trained model; what is finished is skipped."""
    from automodel_cli.cli.app import COMMANDS
    from automodel_cli.recipes import pipeline as recipe

    pipeline = recipe.load(cfg)
    known = [name for name in COMMANDS if name not in _NOT_IN_FILES]
    for step in pipeline.steps:
        if step.words[0] not in known:
            raise ConfigError(
                f"steps.{step.name}: {step.words[0]!r} is no command that a pipeline can run",
                f"there are: {', '.join(known)}",
            )
        if foreign := sorted(parse_argv(step.words).launch.keys() - LAUNCH_IN_FILES):
            raise ConfigError(
                f"steps.{step.name}: --{foreign[0]} in a file could join a stranger's processes",
                "give launch flags to automodel run",
            )
    if cfg.dry_run:
        for line in recipe.headings(pipeline):
            console.say(line)
        return
    with console.reporter("run") as reporter:
        recipe.run(pipeline, Invocation.of(context).launch, reporter, trust=cfg.trust)
