"""Drawing the curves of runs from their ``metrics.jsonl``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import nested_runs
from automodel_cli.checkpoint.inspect.family import describe_family
from automodel_cli.config.schema.results import PlotConfig
from automodel_cli.errors import DataError
from automodel_cli.metrics.log_file import METRICS_NAME, metrics_path
from automodel_cli.metrics.plot import plot_runs
from automodel_cli.metrics.plot_tree import RunOfTree, plot_tree
from automodel_cli.metrics.read import read_metrics

DEFAULT_NAME = "curves.png"
TREE_NAME = "curves_tree.png"


def run(cfg: PlotConfig) -> Path:
    """Draw ``cfg.runs`` into one figure; returns its path.

    Raises:
        ConfigError: matplotlib is missing, or the output's name has an unknown ending.
        CheckpointError: a run whose tree is wanted has no branches.
        DataError: a run has no metrics.
    """
    if cfg.tree:
        return _draw_tree(cfg)
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


def _draw_tree(cfg: PlotConfig) -> Path:
    roots = [root for folder in cfg.runs for root in describe_family(Path(folder))["runs"]]
    output = Path(cfg.output) if cfg.output is not None else Path(cfg.runs[0], TREE_NAME)
    return plot_tree([_with_metrics(root) for root in roots], output, title=cfg.title)


def _with_metrics(node: Mapping[str, Any]) -> RunOfTree:
    """A run of the tree and those below it, with what they have logged."""
    has_log = node["there"] and (Path(node["path"]) / METRICS_NAME).exists()
    metrics = read_metrics(node["path"]) if has_log else None
    branches = tuple(map(_with_metrics, node["branches"]))
    return RunOfTree(node["name"], metrics, node.get("from_step"), branches)
