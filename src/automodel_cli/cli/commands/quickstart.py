"""``automodel quickstart``: the whole pipeline on Python's own source files."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.cli import console
from automodel_cli.cli.options import command
from automodel_cli.config.schema.options import QuickstartOptions


@command(
    QuickstartOptions,
    file=False,
    examples=("automodel quickstart", "automodel quickstart --source 'notes/*.txt' --output-dir runs/notes"),
)
def quickstart(cfg: QuickstartOptions) -> None:
    """Text -> tokenizer -> token files -> trained GPT -> score -> picture, in about five minutes on two cores."""
    from automodel_cli.recipes import quickstart as recipe

    recipe.run(Path(cfg.config) if cfg.config else None, Path(cfg.output_dir), source=cfg.source, say=console.say)
