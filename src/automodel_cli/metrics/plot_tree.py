"""The curves of a run and its branches in one figure: each branch begins where it leaves the run that it comes from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file
from automodel_cli.metrics.plot import FAINT_INK, INK, PALETTE, STYLE, format_of, import_matplotlib, smooth, undated
from automodel_cli.metrics.read import Columns, RunMetrics

_TRUNK, _BRANCHES = INK, (*PALETTE[:6], *PALETTE[7:])
_SMOOTHED_TO = 40  # points of a curve of training losses, where nothing was validated


@dataclass(frozen=True)
class RunOfTree:
    """A run, its name, and the branches that leave it at ``from_step`` each."""

    name: str
    metrics: RunMetrics | None  # None: it is not there, or has logged nothing
    from_step: int | None = None
    branches: Sequence[RunOfTree] = field(default_factory=tuple)


def plot_tree(roots: Sequence[RunOfTree], out: Path | str, *, title: str | None = None, dpi: int = 150) -> Path:
    """Draw validation losses (training losses of a run without any) above learning rates.

    Raises:
        ConfigError: matplotlib is missing, or the name of ``out`` has another ending.
        DataError: no run has a loss.
    """
    target = Path(out)
    file_format, matplotlib = format_of(target), import_matplotlib()
    if not any(_losses(run.metrics)[0].size for root in roots for run, _ in _walk(root)):
        raise DataError("nothing to draw: no run of the tree has logged a loss", "wait for the first step")
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), atomic_file(target) as handle:
        figure = matplotlib.figure.Figure(figsize=(10, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
        loss, rate = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        colors = itertools.cycle(_BRANCHES)
        for run, above in (pair for root in roots for pair in _walk(root)):
            color = next(colors) if above else _TRUNK
            _draw(loss, run, above, color)
            _draw_rate(rate, run, color)
        _finish(loss, rate, roots)
        figure.suptitle(title or f"{roots[0].name} and its branches", x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.savefig(handle, format=file_format, dpi=dpi, metadata=undated(file_format))
    return target


def _walk(run: RunOfTree, above: tuple[RunOfTree, ...] = ()) -> Iterator[tuple[RunOfTree, tuple[RunOfTree, ...]]]:
    """All runs of a tree, each with those that it comes from, the nearest first."""
    yield run, above
    for branch in run.branches:
        yield from _walk(branch, (run, *above))


def _losses(metrics: RunMetrics | None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of the first validation set; without one those of training, smoothed."""
    if metrics is None:
        return np.empty(0, int), np.empty(0)
    sets = metrics.validation
    validated = sets.get("default", next(iter(sets.values()), {}))
    if "loss" in validated:
        return _finite(validated)
    steps, losses = _finite(metrics.train)
    return steps, smooth(losses, steps.size // _SMOOTHED_TO)


def _finite(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    if "loss" not in columns:
        return np.empty(0, int), np.empty(0)
    sound = np.isfinite(columns["loss"])
    return columns["step"][sound], columns["loss"][sound]


def _draw(axes: Any, run: RunOfTree, above: Sequence[RunOfTree], color: str) -> None:
    steps, losses = _losses(run.metrics)
    if not steps.size:
        return
    if (fork := _known_at_the_fork(run, above)) is not None:
        axes.plot(*fork, "o", color=color, markersize=4, zorder=4)
        steps, losses = np.concatenate([[fork[0]], steps]), np.concatenate([[fork[1]], losses])
    label = f"{run.name} (last {losses[-1]:.4f})"
    axes.plot(steps, losses, color=color, linewidth=1.4 if above else 1.6, label=label)


def _known_at_the_fork(run: RunOfTree, above: Sequence[RunOfTree]) -> tuple[int, float] | None:
    """Step and loss of what was last known of the weights that a branch began with."""
    for parent in above:
        steps, losses = _losses(parent.metrics)
        before = steps <= (run.from_step or 0)
        if before.any():
            return int(steps[before][-1]), float(losses[before][-1])
    return None


def _draw_rate(axes: Any, run: RunOfTree, color: str) -> None:
    if run.metrics is not None and "lr" in run.metrics.train:
        axes.plot(run.metrics.train["step"], run.metrics.train["lr"], color=color, linewidth=1.4)


def _finish(loss: Any, rate: Any, roots: Sequence[RunOfTree]) -> None:
    validated = any(run.metrics and run.metrics.validation for root in roots for run, _ in _walk(root))
    loss.set_title(f"{'Validation loss' if validated else 'Loss'} (nats per token)")
    rate.set_title("Learning rate")
    every = np.concatenate([line.get_ydata() for line in loss.lines if len(line.get_ydata()) > 1] or [np.empty(0)])
    if every.size > 2:
        low, high = float(every.min()), float(np.quantile(every, 0.9))  # the first steps would flatten the rest
        loss.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    rate.set_ylim(bottom=0)
    ticker = import_matplotlib().ticker
    for axes in (loss, rate):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
        axes.set_xlabel("step", color=FAINT_INK)
        axes.margins(x=0.02)
    rate.sharex(loss)
    loss.legend(loc="upper right", fontsize=9, framealpha=0.9, edgecolor="none")
