"""``automodel quickstart``: the main job end to end on this machine's own Python sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console


def quickstart(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Configuration of the training run, instead of the preset."),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path(
        "runs/quickstart"
    ),
    source: Annotated[
        str | None, typer.Option(help="Text to use instead of the standard library's sources.")
    ] = None,
) -> None:
    """Text -> tokenizer -> token files -> trained GPT -> score -> picture, in about five minutes on two cores."""
    from automodel_cli.recipes import quickstart as recipe

    recipe.run(config, output_dir, source=source, say=console.say)
