"""A scaling law from the results of a sweep, or from a CSV file of points. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automodel_cli.config.schema.sweep import SweepFitConfig
from automodel_cli.scaling.analysis import Analysis, Optimum, Prediction, analyze
from automodel_cli.scaling.points import read_points


@dataclass(frozen=True)
class Fit:
    """What was asked for."""

    source: Path
    analysis: Analysis
    optima: list[Optimum]
    predictions: list[Prediction]


def run(cfg: SweepFitConfig) -> Fit:
    """Read, fit and resample.

    Raises:
        DataError: no such file, a row that is no point, or points that do not determine a law.
    """
    points = read_points(Path(cfg.results), params=cfg.params, metric=cfg.metric, where=cfg.where)
    found = analyze(points, level=cfg.level, resamples=cfg.bootstrap, seed=cfg.seed, delta=cfg.huber_delta)
    budgets = cfg.budget or tuple(points.budgets.tolist())
    return Fit(
        Path(cfg.results),
        found,
        [found.optimum(budget) for budget in budgets],
        [found.predict(*pair) for pair in cfg.predict],
    )
