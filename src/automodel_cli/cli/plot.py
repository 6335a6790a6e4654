"""``automodel plot``: the curves of one or several runs as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import PlotConfig


def plot(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Run folders or metrics.jsonl files.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Picture, .png .svg .pdf (default: RUN/curves.png).")
    ] = None,
    log_x: Annotated[bool | None, typer.Option("--log-x", help="Logarithmic axis of steps.")] = None,
    log_loss: Annotated[bool | None, typer.Option("--log-loss", help="Logarithmic axis of losses.")] = None,
    smooth: Annotated[
        int | None, typer.Option(help="Records that a point of the bold curve averages; 1: none.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the figure.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Draw loss, learning rate, throughput and gradient norm of runs."""
    flags = {
        "runs": runs or None,
        "output": output,
        "log_x": log_x,
        "log_loss": log_loss,
        "smooth": smooth,
        "title": title,
    }
    cfg = load_config(PlotConfig, config, flags=flags)

    from automodel_cli.recipes import plot as recipe

    console.say(f"wrote {recipe.run(cfg)}")
