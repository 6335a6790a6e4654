"""``automodel import SOURCE OUT``: a checkpoint of nanoGPT, litgpt or lingua as a Hugging Face folder."""

from __future__ import annotations

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command
from automodel_cli.config.schema.results import ImportConfig
from automodel_cli.text import binary_size


@command(
    ImportConfig,
    arguments=("source", "output"),
    examples=("automodel import out/ckpt.pt imported", "automodel import checkpoints/pythia imported"),
)
def import_checkpoint(cfg: ImportConfig) -> None:
    """Make a folder that eval, generate and init_from can read; no code in the checkpoint is run."""
    worker.starting("import: loading PyTorch ...", needs=cfg.source)
    from automodel_cli.recipes import import_checkpoint as recipe

    result = recipe.run(cfg, say=console.say)
    console.say(f"{result.folder}: {binary_size(result.num_bytes)} from a checkpoint of {result.trainer}")
