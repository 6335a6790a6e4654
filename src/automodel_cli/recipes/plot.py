"""Drawing the curves of runs from their ``metrics.jsonl``. No torch."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.checkpoint import nested_runs
from automodel_cli.config.schema.results import PlotConfig
from automodel_cli.errors import DataError
from automodel_cli.metrics.log import METRICS_NAME, metrics_path
from automodel_cli.metrics.plot import plot_runs

DEFAULT_NAME = "curves.png"


def run(cfg: PlotConfig) -> Path:
    """Draw ``cfg.runs`` into one figure; returns its path.

    Raises:
        ConfigError: matplotlib is missing, or the output's name has an unknown ending.
        DataError: a run has no metrics.
    """
    for folder in map(Path, cfg.runs):
        if not (folder / METRICS_NAME).exists() and (hint := nested_runs.way_down(folder)):
            raise DataError(f"{folder} has logged nothing itself", hint)
    output = Path(cfg.output) if cfg.output is not None else metrics_path(cfg.runs[0]).parent / DEFAULT_NAME
    return plot_runs(
        cfg.runs,
        output,
        log_x=cfg.log_x,
        log_loss=cfg.log_loss,
        smooth_records=cfg.smooth,
        title=cfg.title,
    )
