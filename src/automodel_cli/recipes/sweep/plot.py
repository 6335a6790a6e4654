"""The pictures of a sweep, or of a CSV file of points. No torch."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.config.schema.sweep import SweepPlotConfig
from automodel_cli.errors import ConfigError
from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.plot import plot_scaling, table_beside
from automodel_cli.scaling.points import read_points

DEFAULT_NAME = "scaling.png"


def run(cfg: SweepPlotConfig) -> tuple[Path, Path]:
    """Draw; returns the picture and the CSV file of what is drawn.

    Raises:
        ConfigError: matplotlib is missing, the output's name has an unknown ending, or the points would be replaced.
        DataError: no such file, a row that is no point, or points that do not determine a law.
    """
    source = Path(cfg.results)
    output = _output(cfg, source)
    points = read_points(source, params=cfg.params, metric=cfg.metric, where=cfg.where)
    found = analyze(points, level=cfg.level, resamples=cfg.bootstrap, seed=cfg.seed, delta=cfg.huber_delta)
    title = cfg.title or folder_name(source)
    return plot_scaling(found, output, budgets=cfg.budget, metric=cfg.metric, title=title)


def _output(cfg: SweepPlotConfig, source: Path) -> Path:
    folder = source if source.is_dir() else source.parent
    output = Path(cfg.output) if cfg.output is not None else folder / DEFAULT_NAME
    if table_beside(output).resolve() == source.resolve():
        raise ConfigError(
            f"the points drawn into {output} would replace {source}", "give the picture another name with -o"
        )
    return output


def folder_name(source: Path) -> str:
    """What the results are called: the sweep's folder, or the CSV file without its ending."""
    if source.is_dir():
        return source.resolve().name
    return source.resolve().parent.name if source.suffix == ".jsonl" else source.stem
