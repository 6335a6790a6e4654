"""``automodel export hf CKPT OUT``: a checkpoint as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console, worker
from automodel_cli.config.load import load_config
from automodel_cli.config.schema_export import ExportConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Checkpoints in other formats: hf.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _export() -> None:
    """Checkpoints in other formats."""


@app.command("hf")
def hf(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Checkpoint or run folder (its LATEST).")
    ] = None,
    output: Annotated[str | None, typer.Argument(metavar="OUT", help="Folder to make.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Write config, tokenizer and safetensors that transformers loads; a few tensors in memory at a time."""
    cfg = load_config(ExportConfig, config, flags={"checkpoint": checkpoint, "output": output})

    worker.starting("export hf: loading PyTorch ...")
    from automodel_cli.recipes import export as recipe

    with console.Progress("checking", unit="files") as progress:
        result = recipe.run(cfg, progress=progress, say=console.say)
    console.say(f"{result.folder}: {result.num_bytes / 2**20:,.1f} MiB from {result.checkpoint}")
