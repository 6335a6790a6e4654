"""The pictures of a sweep, or of a CSV file of points. No torch."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.config.schema.sweep import SweepPlotConfig
from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.plot import plot_scaling
from automodel_cli.scaling.points import read_points

DEFAULT_NAME = "scaling.png"


def run(cfg: SweepPlotConfig) -> tuple[Path, Path]:
    """Draw; returns the picture and the CSV file of what is drawn.

    Raises:
        ConfigError: matplotlib is missing, or the output's name has an unknown ending.
        DataError: no such file, a row that is no point, or points that do not determine a law.
    """
    source = Path(cfg.results)
    points = read_points(source, params=cfg.params, metric=cfg.metric, where=cfg.where)
    found = analyze(points, level=cfg.level, resamples=cfg.bootstrap, seed=cfg.seed, delta=cfg.huber_delta)
    folder = source if source.is_dir() else source.parent
    output = Path(cfg.output) if cfg.output is not None else folder / DEFAULT_NAME
    return plot_scaling(
        found, output, budgets=cfg.budget, metric=cfg.metric, title=cfg.title or folder_name(source)
    )


def folder_name(source: Path) -> str:
    """What the results are called: the sweep's folder, or the file without its ending."""
    return (
        source.resolve().name
        if source.is_dir() or source.suffix != ".jsonl"
        else source.resolve().parent.name
    )
