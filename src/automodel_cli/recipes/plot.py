"""Drawing the curves of runs from their ``metrics.jsonl``. No torch."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.config.schema import PlotConfig
from automodel_cli.metrics.log import metrics_path
from automodel_cli.metrics.plot import plot_runs

DEFAULT_NAME = "curves.png"


def run(cfg: PlotConfig) -> Path:
    """Draw ``cfg.runs`` into one figure; returns its path.

    Raises:
        ConfigError: matplotlib is missing, or the output's name has an unknown ending.
        DataError: a run has no metrics.
    """
    output = Path(cfg.output) if cfg.output is not None else metrics_path(cfg.runs[0]).parent / DEFAULT_NAME
    return plot_runs(
        cfg.runs,
        output,
        log_x=cfg.log_x,
        log_loss=cfg.log_loss,
        smooth_records=cfg.smooth,
        title=cfg.title,
    )
