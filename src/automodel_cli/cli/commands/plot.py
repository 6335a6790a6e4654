"""``automodel plot``: curves of one or several runs."""

from __future__ import annotations

from automodel_cli.cli import console
from automodel_cli.cli.options import command
from automodel_cli.config.schema.results import PlotConfig


@command(
    PlotConfig,
    arguments=("runs",),
    examples=("automodel plot runs/a", "automodel plot runs/a runs/b --log-x -o both.svg"),
)
def plot(cfg: PlotConfig) -> None:
    """Draw loss, learning rate, throughput and gradient norm of runs."""
    from automodel_cli.recipes import plot as recipe

    console.say(f"wrote {recipe.run(cfg)}")
