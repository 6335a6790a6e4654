"""``automodel run``: a file of commands, one after another."""

from __future__ import annotations

import typer

from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import command
from automodel_cli.config.schema.pipeline import PipelineOptions
from automodel_cli.errors import ConfigError


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
    for step in pipeline.steps:
        if step.words[0] not in COMMANDS or step.words[0] == "run":
            raise ConfigError(
                f"steps.{step.name}: {step.words[0]!r} is no command that a pipeline can run",
                f"there are: {', '.join(name for name in COMMANDS if name != 'run')}",
            )
    if cfg.dry_run:
        for line in recipe.headings(pipeline):
            console.say(line)
        return
    with console.reporter("run") as reporter:
        recipe.run(pipeline, Invocation.of(context).launch, reporter, trust=cfg.trust)
