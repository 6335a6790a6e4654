"""``automodel init``: a configuration to start from."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.cli import console
from automodel_cli.cli.options import command
from automodel_cli.config.schema.options import InitOptions


@command(
    InitOptions,
    file=False,
    arguments=("preset",),
    examples=("automodel init", "automodel init gpt2-small --data train.bin -o run.yaml"),
)
def init(cfg: InitOptions) -> None:
    """Write a commented starter YAML file."""
    from automodel_cli.recipes import init as recipe

    output = Path(cfg.output) if cfg.output else None
    recipe.run(cfg.preset, output, cfg.data, cfg.val_data, say=console.say)
