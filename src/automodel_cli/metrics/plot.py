"""The curves of one or several runs in one figure: loss, learning rate, throughput, gradient norm.

Training loss is drawn raw (thin) and smoothed (bold); validation as marked points. Several runs share the
axes, a color each. Matplotlib's file backends only: no window, no global state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import atomic_file
from automodel_cli.metrics.read import Columns, RunMetrics, read_runs

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's palette (distinct for colour-blind readers), dark enough on white; yellow left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5B5B5B", "#8B5E3C")
_SMALL_PANELS = {"lr": "Learning rate", "tps": "Tokens per second", "grad_norm": "Gradient norm"}
_MOST_INSIDE = 6  # entries of a legend that may lie over the curves
INK, FAINT_INK, GRID = "#1f2328", "#57606a", "#e4e7eb"
STYLE = {
    "font.size": 10, "text.color": INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": INK,
    "axes.edgecolor": "#c4c9d0", "axes.labelcolor": FAINT_INK,
    "xtick.color": FAINT_INK, "ytick.color": FAINT_INK,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.hashsalt": "automodel",  # equal runs give equal bytes
}  # fmt: skip


def plot_runs(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    log_x: bool = False,
    log_loss: bool = False,
    smooth_records: int | None = None,
    title: str | None = None,
    dpi: int = 150,
) -> Path:
    """Draw the curves of ``runs`` (run folders or metrics.jsonl files) into ``out`` (.png, .svg or .pdf).

    Args:
        smooth_records: log records that a smoothed point averages over; None: a fortieth of the run; 1: none.

    Raises:
        ConfigError: matplotlib is missing, or the name of ``out`` has another ending.
        DataError: a run has no metrics.
    """
    target = Path(out)
    file_format = format_of(target)
    matplotlib = import_matplotlib()
    metrics = read_runs(runs)
    if not any(run.train or run.validation for run in metrics):
        raise DataError("nothing to draw: no training or validation record", "wait for the run's first step")
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), atomic_file(target) as handle:
        figure = draw(metrics, log_x=log_x, log_loss=log_loss, smooth_records=smooth_records, title=title)
        figure.savefig(handle, format=file_format, dpi=dpi, metadata=undated(file_format))
    return target


def format_of(target: Path) -> str:
    """Format of a figure file, by its ending.

    Raises:
        ConfigError: it has another.
    """
    ending = target.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ConfigError(
            f"cannot draw into {target}: its name ends with {target.suffix or 'nothing'}",
            f"end it with one of .{', .'.join(FORMATS)}",
        )
    return ending


def undated(file_format: str) -> dict[str, None] | None:
    """Leave the date out where the format would carry one: the same numbers give the same file."""
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format)


def import_matplotlib() -> Any:
    """matplotlib, with what file figures need of it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib  # an extra of the package: only plots need it
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed", "pip install 'automodel-cli[plot]'"
        ) from None
    return matplotlib


def draw(
    runs: Sequence[RunMetrics],
    *,
    log_x: bool = False,
    log_loss: bool = False,
    smooth_records: int | None = None,
    title: str | None = None,
) -> Any:
    """The figure (``matplotlib.figure.Figure``): loss on top, three small panels below."""
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(2.1, 1))
        loss = figure.add_subplot(grid[0, :])
        small = {name: figure.add_subplot(grid[1, index]) for index, name in enumerate(_SMALL_PANELS)}
        for run, color in zip(runs, itertools.cycle(PALETTE), strict=False):
            _draw_loss(loss, run, color, smooth_records=smooth_records, alone=len(runs) == 1)
            for name, axes in small.items():
                _draw_column(axes, run.train, name, color, smooth_records=smooth_records)
        _finish_loss_axes(figure, loss, runs, log_loss=log_loss)
        _finish_small_axes(small)
        for axes in (loss, *small.values()):
            _finish_steps_axis(axes, runs, log_x)
        default = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
        figure.suptitle(title or default, x=0.01, ha="left", fontsize=13, fontweight="bold")
        return figure


# ------------------------------------------------------------------------------------ the panels


def _draw_loss(axes: Any, run: RunMetrics, color: str, *, smooth_records: int | None, alone: bool) -> None:
    prefix = "" if alone else f"{run.label}: "
    _draw_column(axes, run.train, "loss", color, smooth_records=smooth_records, label=f"{prefix}train")
    names = sorted(run.validation, key=lambda name: (name != "default", name))
    for index, name in enumerate(names):
        steps, losses = _finite(run.validation[name], "loss")
        if not steps.size:
            continue
        label = f"{prefix}validation {name}".removesuffix(" default")
        # One run: its own color tells validation from training. Several: color is the run, the marker the kind.
        shade = PALETTE[(index + 1) % len(PALETTE)] if alone else color
        marker = {
            "marker": "osD^v"[index % 5],
            "markersize": 5,
            "markerfacecolor": "white",
            "markeredgewidth": 1.4,
        }
        line = {"color": shade, "linewidth": 1.2, "linestyle": (0, (4, 2)), "zorder": 3}
        axes.plot(steps, losses, label=f"{label} (last {losses[-1]:.4f})", **line, **marker)


def _draw_column(
    axes: Any,
    columns: Columns,
    name: str,
    color: str,
    *,
    smooth_records: int | None,
    label: str | None = None,
) -> None:
    """The values as they are (thin) under their running mean (bold); ``label`` gets the last value of the log."""
    steps, values = _finite(columns, name)
    if not steps.size:
        return
    if name == "tps" and steps.size > 2:
        steps, values = steps[1:], values[1:]  # the first step compiles and warms up
    # The learning rate is a planned curve, not a measurement: smoothing would round its corners off.
    window = 1 if name == "lr" else (steps.size // 40 if smooth_records is None else smooth_records)
    smoothed = smooth(values, window)
    if window > 1:
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
    marker = "o" if steps.size < 3 else None
    text = None if label is None else f"{label} (last {values[-1]:.4f})"
    axes.plot(steps, smoothed, color=color, linewidth=1.6, marker=marker, label=text)


def _finish_loss_axes(figure: Any, axes: Any, runs: Sequence[RunMetrics], *, log_loss: bool) -> None:
    axes.set_title("Loss (nats per token)")
    if log_loss:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis, axes.get_ylim(), 8)
    trained = [run.train for run in runs if "loss" in run.train]
    skipped = np.concatenate([np.empty(0, int), *(own["step"][~np.isfinite(own["loss"])] for own in trained)])
    if skipped.size:
        bottom = axes.get_xaxis_transform()  # x in steps, y as a fraction of the panel
        heights = np.full(skipped.shape, 0.02)
        label = f"{skipped.size} skipped (not finite)"
        axes.plot(skipped, heights, "x", color="#b42318", markersize=5, transform=bottom, label=label)
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > _MOST_INSIDE:  # would hide the curves
        columns = 3 if max(map(len, labels)) < 40 else 2
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(loc="outside lower center", fontsize=8, ncols=columns, frameon=False)
    elif handles:
        axes.legend(loc="upper right", fontsize=9.5, framealpha=0.9, edgecolor="none")


def _finish_small_axes(panels: dict[str, Any]) -> None:
    ticker = import_matplotlib().ticker
    panels["tps"].yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    panels["lr"].yaxis.set_major_formatter(ticker.FuncFormatter(_short_power))
    for name, axes in panels.items():
        axes.set_title(_SMALL_PANELS[name])
        if axes.lines:
            _set_value_range(axes, log_allowed=name == "grad_norm")
        else:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=FAINT_INK)
            axes.set_yticks([])


def _short_power(value: float, _position: int = 0) -> str:
    """``6e-4``, ``2.5e-4``, ``0``: a learning rate as people write it."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _set_value_range(axes: Any, *, log_allowed: bool) -> None:
    """From zero up; a log axis where values span a factor of 30: one spike must not flatten the rest."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    if log_allowed and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
        plain_numbers(axes.yaxis, axes.get_ylim(), 5)
    elif values.max() > 0:
        axes.set_ylim(0, 1.08 * values.max())


def _finish_steps_axis(axes: Any, runs: Sequence[RunMetrics], log_x: bool) -> None:
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    if log_x:
        axes.set_xscale("log")
        plain_numbers(axes.xaxis, axes.get_xlim(), 5)
        return
    ticker = import_matplotlib().ticker
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
    every = [columns for run in runs for columns in (run.train, *run.validation.values()) if columns]
    last = max((int(columns["step"][-1]) for columns in every), default=0)
    if last >= 10_000:
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def plain_numbers(axis: Any, limits: tuple[float, float], most: int) -> None:
    """Ticks of a log axis as people write numbers (``2``, ``0.05``, ``20k``), few enough to stand apart."""
    ticker = import_matplotlib().ticker
    ticks = log_ticks(*limits, most)
    if len(ticks) < 3:  # less than a decade: even steps
        steps = ticker.MaxNLocator(nbins=most).tick_values(*limits)
        ticks = [tick for tick in steps.tolist() if limits[0] <= tick <= limits[1] and tick > 0]
    if axis.axis_name == "x":  # steps are whole
        ticks = [tick for tick in ticks if tick >= 1 and tick == int(tick)]
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter(ticker.FuncFormatter(_plain_number))
    axis.set_minor_locator(ticker.NullLocator())


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 of each decade between ``low`` and ``high``, or 1 and 3, or 1, or 1 of some: at most ``most``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = [(1, 2, 5), (1, 3), (1,)]
    choices = [[digit * 10.0**decade for decade in decades for digit in some] for some in digits]
    choices += [choices[-1][::step] for step in range(2, len(decades) + 1)]
    shown = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    return next((ticks for ticks in shown if len(ticks) <= most), [])


def _plain_number(value: float, _position: int = 0) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (limit if limit > 1e4 else 1e3):g}{unit}"
    return f"{value:.6g}" if value >= 1e-4 else _short_power(value)


# ------------------------------------------------------------------------------------- the numbers


def _finite(columns: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a column where it is finite; empty where the column is missing."""
    if name not in columns:
        return np.empty(0, dtype=np.int64), np.empty(0)
    good = np.isfinite(columns[name])
    return columns["step"][good], columns[name][good]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over about ``window`` values; ``window <= 1`` leaves them as they are.

    Centred, because a trailing mean would draw a falling loss too high. Near the start, where losses fall
    steeply, the window shrinks evenly on both sides for the same reason; at the end only its right side does.
    """
    if window <= 1 or values.size < 3:
        return values
    index = np.arange(values.size)
    half = np.minimum(window // 2, index)
    right = np.minimum(index + half, values.size - 1)
    left = index - half
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[right + 1] - sums[left]) / (right + 1 - left)
