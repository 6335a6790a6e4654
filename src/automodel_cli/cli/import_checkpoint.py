"""``automodel import SOURCE OUT``: a checkpoint of nanoGPT, litgpt or lingua as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console
from automodel_cli.config.load import load_config
from automodel_cli.config.schema_import import ImportConfig


def import_checkpoint(
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="nanoGPT's ckpt.pt, or a folder of litgpt or lingua."),
    ] = None,
    output: Annotated[str | None, typer.Argument(metavar="OUT", help="Folder to make.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Name or folder (default: the one in the folder).")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(metavar="gelu|gelu_tanh", help="nanoGPT's (default: gelu, since June 2023).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Make a folder that eval, generate and init_from take; no code in a checkpoint is run."""
    flags = {"source": source, "output": output, "tokenizer": tokenizer, "activation": activation}
    cfg = load_config(ImportConfig, config, flags=flags)

    from automodel_cli.recipes import import_checkpoint as recipe

    result = recipe.run(cfg, say=console.say)
    console.say(f"{result.folder}: {result.num_bytes / 2**20:,.1f} MiB from a checkpoint of {result.trainer}")
