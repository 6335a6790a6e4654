"""``automodel init``: a configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console


def init(
    preset: Annotated[
        str | None, typer.Argument(help="Which one; without it they are listed.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; PRESET.yaml by default.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Token file, pattern or corpus folder to train on.", show_default=False),
    ] = None,
    val_data: Annotated[
        str | None,
        typer.Option(help="The same to validate on; a corpus brings its own.", show_default=False),
    ] = None,
) -> None:
    """Write a commented YAML file to start from: automodel init gpt2-small --data train.bin -o run.yaml."""
    from automodel_cli.recipes import init as recipe

    recipe.run(preset, output, data, val_data, say=console.say)
