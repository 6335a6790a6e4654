"""The curves of a run and its branches in one figure: each branch begins where it leaves the run that it comes from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file
from automodel_cli.metrics.plot import FAINT_INK, INK, PALETTE, STYLE, format_of, import_matplotlib, smooth, undated
from automodel_cli.metrics.read import Columns, RunMetrics

_TRUNK, _BRANCHES = INK, (*PALETTE[:6], *PALETTE[7:])
_NOTHING = (np.empty(0, np.int64), np.empty(0))
_SMOOTHED_TO = 40  # points of a curve of training losses, where nothing was validated

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""
Values = Callable[[RunMetrics], Curve]


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
    runs = [run.metrics for root in roots for run, _ in _walk(root)]
    if not any(_losses(metrics)[0].size for metrics in runs if metrics is not None):
        raise DataError("nothing to draw: no run of the tree has logged a loss", "wait for the first step")
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), atomic_file(target) as handle:
        figure = matplotlib.figure.Figure(figsize=(10, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
        loss, rate = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        colors = itertools.cycle(_BRANCHES)
        for run, above in (pair for root in roots for pair in _walk(root)):
            color = next(colors) if above else _TRUNK
            _draw(loss, run, above, color, _losses)
            _draw(rate, run, above, color, _rates)
        _finish(loss, rate, roots)
        figure.suptitle(title or f"{roots[0].name} and its branches", x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.savefig(handle, format=file_format, dpi=dpi, metadata=undated(file_format))
    return target


def _walk(run: RunOfTree, above: tuple[RunOfTree, ...] = ()) -> Iterator[tuple[RunOfTree, tuple[RunOfTree, ...]]]:
    """All runs of a tree, each with those that it comes from, the nearest first."""
    yield run, above
    for branch in run.branches:
        yield from _walk(branch, (run, *above))


def _losses(metrics: RunMetrics) -> Curve:
    """Of the first validation set; without one those of training, smoothed."""
    sets = metrics.validation
    validated = sets.get("default", next(iter(sets.values()), {}))
    if "loss" in validated:
        return _finite(validated, "loss")
    steps, losses = _finite(metrics.train, "loss")
    return steps, smooth(losses, steps.size // _SMOOTHED_TO)


def _rates(metrics: RunMetrics) -> Curve:
    return _finite(metrics.train, "lr")


def _finite(columns: Columns, name: str) -> Curve:
    if name not in columns:
        return _NOTHING
    sound = np.isfinite(columns[name])
    return columns["step"][sound], columns[name][sound]


def _draw(axes: Any, run: RunOfTree, above: Sequence[RunOfTree], color: str, values: Values) -> None:
    """The curve of a run, from the last that was known of what it began with."""
    steps, found = values(run.metrics) if run.metrics is not None else _NOTHING
    if not steps.size:
        return
    label = f"{run.name} (last {found[-1]:.4f})"
    if (fork := _known_at_the_fork(run, above, values)) is not None:
        axes.plot(*fork, "o", color=color, markersize=4, zorder=4)
        steps, found = np.concatenate([[fork[0]], steps]), np.concatenate([[fork[1]], found])
    axes.plot(steps, found, color=color, linewidth=1.4 if above else 1.6, label=label)


def _known_at_the_fork(run: RunOfTree, above: Sequence[RunOfTree], values: Values) -> tuple[int, float] | None:
    """Step and value that the nearest run above has logged last before ``run`` left."""
    for metrics in (parent.metrics for parent in above if parent.metrics is not None):
        steps, found = values(metrics)
        before = steps <= (run.from_step or 0)
        if before.any():
            return int(steps[before][-1]), float(found[before][-1])
    return None


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
