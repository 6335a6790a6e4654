"""``automodel average``: one checkpoint from several of one model."""

from __future__ import annotations

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command
from automodel_cli.config.schema.results import AverageConfig
from automodel_cli.text import binary_size


@command(
    AverageConfig,
    arguments=("checkpoints",),
    examples=(
        "automodel average runs/a --last 5 --output runs/a_mean",
        "automodel average runs/a/step_00001000 runs/b/BEST --weights 2,1 --output runs/ab",
    ),
)
def average(cfg: AverageConfig) -> None:
    """Write the mean of several checkpoints' weights as one that eval, generate, export and init_from take."""
    worker.starting("average: loading PyTorch ...", needs=cfg.checkpoints[0])
    from automodel_cli.recipes import average as recipe

    with console.Progress("averaging", unit="tensors") as progress:
        result = recipe.run(cfg, progress=progress)
    for part in result.parts:
        console.say(f"{part.share:7.2%}  {part.folder}")
    console.say(f"{result.folder}: {binary_size(result.num_bytes)}, the average of {len(result.parts)} checkpoints")
