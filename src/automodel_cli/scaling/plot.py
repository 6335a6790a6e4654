"""The pictures of an analysis: isoFLOP curves, the best size and the loss against compute, and times against size.

Budgets are told apart by shade (viridis, which also falls from dark to light in gray) and by marker. The points that
are drawn go into a CSV file beside the picture.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.files import atomic_file
from automodel_cli.metrics.plot import (
    FAINT_INK,
    PALETTE,
    STYLE,
    format_of,
    import_matplotlib,
    log_ticks,
    plain_numbers,
    undated,
)
from automodel_cli.scaling.analysis import Analysis, Optimum
from automodel_cli.scaling.bootstrap import Interval
from automodel_cli.text import short

_MARKERS = "osD^vPX<>ph*"
_LIGHTEST = 0.88  # of viridis: its yellow end is lost on white paper
_LAW, _PARABOLAS = PALETTE[0], PALETTE[1]
_BUDGETS_OF_A_LINE = 40
_BEYOND = 4.0  # lines go on to so many times the largest budget
_TIMES = {
    "compute_s": ("Training time against size", "hours", 1 / 3600),
    "step_s": ("Time of an update against size", "seconds", 1.0),
}
_UNITS = {"loss": "nats per token", "bpb": "bits per byte"}


def plot_scaling(
    found: Analysis,
    out: Path,
    *,
    budgets: Sequence[float] = (),
    metric: str = "loss",
    title: str = "",
    dpi: int = 150,
) -> tuple[Path, Path]:
    """Draw ``found`` into ``out`` (.png, .svg or .pdf); returns it and the CSV file of what is drawn.

    Args:
        budgets: optima to mark beside those of the points.

    Raises:
        ConfigError: matplotlib is missing, or the name of ``out`` has another ending.
    """
    file_format = format_of(out)
    matplotlib = import_matplotlib()
    optima = _line(found, budgets)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), atomic_file(out) as handle:
        figure = draw(found, optima, budgets=budgets, metric=metric, title=title)
        figure.savefig(handle, format=file_format, dpi=dpi, metadata=undated(file_format))
    with atomic_file(table_beside(out)) as handle:
        handle.write(_csv(found, optima).encode())
    return out, table_beside(out)


def table_beside(out: Path) -> Path:
    """The CSV file of what a picture shows."""
    return out.with_name(f"{out.stem}_points.csv")


def _line(found: Analysis, budgets: Sequence[float]) -> list[Optimum]:
    """Optima over the compute of the points and some way beyond."""
    flops = found.points.flops
    last = max(_BEYOND * flops.max(), *budgets, 0.0)
    return [found.optimum(float(at)) for at in np.geomspace(flops.min(), last, _BUDGETS_OF_A_LINE)]


def draw(
    found: Analysis,
    optima: Sequence[Optimum],
    *,
    budgets: Sequence[float] = (),
    metric: str = "loss",
    title: str = "",
) -> Any:
    """The figure (``matplotlib.figure.Figure``): curves on top, what follows from them below."""
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(STYLE):
        times = [name for name in _TIMES if name in found.points.extras]
        heights = (1.2, 1.0, *[0.8] * bool(times))
        figure = matplotlib.figure.Figure(figsize=(10, 3.9 * sum(heights)), layout="constrained")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights)
        curves, (size, loss) = rows[0].subplots(), rows[1].subplots(1, 2)
        marked = [found.optimum(budget) for budget in budgets]
        _draw_curves(curves, found, matplotlib)
        _draw_sizes(size, found, optima, marked)
        _draw_losses(loss, found, optima, marked)
        for axes in (curves, loss):
            axes.set_ylabel(f"loss ({_UNITS[metric]})")
        panels = [curves, size, loss]
        if times:
            panels += rows[2].subplots(1, len(times), squeeze=False)[0].tolist()
        for axes, name in zip(panels[3:], times, strict=True):
            _draw_times(axes, found, name, matplotlib)
        for axes in panels:
            _finish(axes, 7 if axes is curves else 5, matplotlib)
        _add_legend(rows[0], curves)
        rows[0].suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        return figure


# ------------------------------------------------------------------------------------ the panels


def _shades(found: Analysis, matplotlib: Any) -> list[Any]:
    """A shade of viridis for each budget, the largest darkest."""
    count = len(found.points.budgets)
    colors = matplotlib.colormaps["viridis"](np.linspace(_LIGHTEST, 0.0, count) if count > 1 else [0.4])
    return list(colors)


def _draw_curves(axes: Any, found: Analysis, matplotlib: Any) -> None:
    points = found.points
    axes.set_title("IsoFLOP curves" if found.parabolas else "Loss against size")
    axes.set_xlabel("parameters")
    mine = points.group < 0
    if mine.any():
        label = "other compute" if found.parabolas else "runs"
        axes.plot(points.params[mine], points.loss[mine], ".", color=FAINT_INK, label=label)
    for number, (one, shade) in enumerate(zip(found.parabolas, _shades(found, matplotlib), strict=True)):
        mine = points.of_budget(number)
        marker = _MARKERS[number % len(_MARKERS)]
        label = f"{_power(one.budget)} FLOPs" + (f" ({one.flag})" if one.flag != "ok" else "")
        axes.plot(points.params[mine], points.loss[mine], marker, color=shade, markersize=5, label=label)
        if one.flag != "few sizes":
            sizes = np.geomspace(*one.sizes, 100)
            style = "-" if one.flag == "ok" else (0, (2, 2))
            axes.plot(sizes, one.at(sizes), color=shade, linewidth=1.4, linestyle=style)
    best = [one for one in found.parabolas if one.flag == "ok"]
    if best:
        axes.plot(
            [one.params for one in best], [one.loss for one in best], "*", color=_PARABOLAS, markersize=13,
            markeredgecolor="white", markeredgewidth=0.8, label="minimum of a parabola", zorder=5,
        )  # fmt: skip


def _add_legend(figure: Any, axes: Any) -> None:
    """Beside the panel, not over it; the largest budget has the lowest curve, and the last entry."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)


def _draw_sizes(axes: Any, found: Analysis, optima: Sequence[Optimum], marked: Sequence[Optimum]) -> None:
    axes.set_title("Best size against compute")
    axes.set_ylabel("parameters")
    exponent = found.exponent("a")
    label = f"law: {_exponent(exponent)}"
    _draw_band(axes, optima, "params", label, found.level)
    good = [number for number, one in enumerate(found.parabolas) if one.flag == "ok"]
    if good:
        vertices = [found.vertex(number) for number in good]
        label = f"parabolas: {_exponent(found.parabola_exponent())}" if len(good) > 1 else "parabolas"
        _draw_bars(axes, [found.parabolas[number].budget for number in good], vertices, label)
    if len(good) > 1:
        lines = [(one.budget, one.parabola_params.value) for one in optima]
        axes.plot(*zip(*lines, strict=True), color=_PARABOLAS, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    _mark(axes, marked, "params")
    _finish_compute(axes)
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")


def _draw_losses(axes: Any, found: Analysis, optima: Sequence[Optimum], marked: Sequence[Optimum]) -> None:
    axes.set_title("Loss against compute")
    axes.plot(found.points.flops, found.points.loss, ".", color="#9aa3ad", markersize=4, label="runs", zorder=1)
    exponent = found.exponent("c")
    label = f"law: {found.law.E:.3f} + k C^-{exponent.value:.3f}"
    _draw_band(axes, optima, "loss", label, found.level)
    good = [one for one in found.parabolas if one.flag == "ok"]
    if good:
        budgets, losses = zip(*((one.budget, one.loss) for one in good), strict=True)
        axes.plot(budgets, losses, "D", color=_PARABOLAS, markersize=5, label="parabolas", zorder=3)
    _mark(axes, marked, "loss")
    _finish_compute(axes)
    axes.legend(loc="upper right", fontsize=9, framealpha=0.9, edgecolor="none")


def _draw_band(axes: Any, optima: Sequence[Optimum], name: str, label: str, level: float) -> None:
    budgets = [one.budget for one in optima]
    intervals = [getattr(one, name) for one in optima]
    axes.plot(budgets, [one.value for one in intervals], color=_LAW, linewidth=1.6, label=label, zorder=2)
    low, high = [one.low for one in intervals], [one.high for one in intervals]
    axes.fill_between(budgets, low, high, color=_LAW, alpha=0.18, linewidth=0, zorder=1, label=f"{level:.0%} interval")


def _draw_bars(axes: Any, budgets: Sequence[float], intervals: Sequence[Any], label: str) -> None:
    values = np.array([one.value for one in intervals])
    ends = np.array([[one.value - one.low, one.high - one.value] for one in intervals]).T
    axes.errorbar(
        budgets, values, yerr=np.nan_to_num(np.maximum(ends, 0)), fmt="D", color=_PARABOLAS, markersize=5,
        capsize=2.5, linewidth=1.2, label=label, zorder=3,
    )  # fmt: skip


def _mark(axes: Any, marked: Sequence[Optimum], name: str) -> None:
    """The budgets that were asked for, as open circles on the law."""
    if marked:
        budgets, values = zip(*((one.budget, getattr(one, name).value) for one in marked), strict=True)
        axes.plot(budgets, values, "o", color=_LAW, markerfacecolor="white", markersize=7, zorder=4)


def _draw_times(axes: Any, found: Analysis, name: str, matplotlib: Any) -> None:
    title, unit, factor = _TIMES[name]
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("parameters")
    for number, shade in enumerate(_shades(found, matplotlib)):
        mine = np.flatnonzero(found.points.of_budget(number))
        mine = mine[np.argsort(found.points.params[mine])]
        axes.plot(
            found.points.params[mine],
            found.points.extras[name][mine] * factor,
            color=shade,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.0,
        )
    low, high = axes.dataLim.intervaly
    if high > 4 * low:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * high)


def _finish_compute(axes: Any) -> None:
    axes.set_xlabel("compute (FLOPs)")
    axes.set_yscale("log")


def _finish(axes: Any, most_ticks: int, matplotlib: Any) -> None:
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    if axes.get_xlabel() == "parameters":
        plain_numbers(axes.xaxis, (left, right), most_ticks)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value, 4)))
    else:
        axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(log_ticks(left, right, most_ticks)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: _power(value)))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    if axes.get_yscale() == "log":
        plain_numbers(axes.yaxis, axes.get_ylim(), 7)
    if axes.get_ylabel() == "parameters":
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: short(value, 4)))


def _exponent(interval: Interval) -> str:
    return f"C^{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _power(value: float) -> str:
    """``6e18``, ``2.15e18``: FLOPs as people write them."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ------------------------------------------------------------------------------------ the table

_COLUMNS = (
    "kind",
    "budget",
    "params",
    "params_low",
    "params_high",
    "tokens",
    "loss",
    "loss_low",
    "loss_high",
    "flag",
)


def _csv(found: Analysis, optima: Sequence[Optimum]) -> str:
    """What is drawn: the runs, the vertices of parabolas, and the law's optima along the line."""
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    points = found.points
    for flops, params, tokens, loss in zip(points.flops, points.params, points.tokens, points.loss, strict=True):
        table.writerow({"kind": "run", "budget": flops, "params": params, "tokens": tokens, "loss": loss})
    for number, one in enumerate(found.parabolas):
        row = {"kind": "vertex", "budget": one.budget, "loss": one.loss, "flag": one.flag}
        table.writerow(row | _ends("params", found.vertex(number)))
    for best in optima:
        row = {"kind": "law", "budget": best.budget, "tokens": best.tokens.value}
        table.writerow(row | _ends("params", best.params) | _ends("loss", best.loss))
    return text.getvalue()


def _ends(name: str, interval: Any) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
