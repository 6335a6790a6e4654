"""``automodel sweep``: many runs, and scaling laws from their results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import typer

from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.schema.sweep import SweepFitConfig, SweepPlotConfig, SweepRunConfig
from automodel_cli.text import plural, short

if TYPE_CHECKING:
    from automodel_cli.recipes.sweep.fit import Fit
    from automodel_cli.scaling.analysis import Analysis
    from automodel_cli.scaling.bootstrap import Interval

_EXPONENTS = {
    "a": "N_opt ~ C^a",
    "b": "D_opt ~ C^b",
    "c": "L_opt - E ~ C^-c",
}


@command(
    SweepRunConfig,
    examples=(
        "automodel sweep run -c configs/scaling_law_tiny.yaml --dry-run",
        "automodel sweep run --base configs/depth.yaml --depths 6 --depths 8 --budgets 1e18 --output-dir runs/sweep",
    ),
    epilog="""Each run is its own process in its own folder; finished runs are skipped, interrupted ones go on, failed
    ones are tried again. Launch flags (--nproc-per-node N) are those of each run: automodel help launch.

    Exit codes: 0 all runs are finished, 1 one failed, 75 interrupted (the same command goes on).""",
)
def run(cfg: SweepRunConfig, context: typer.Context) -> int:
    """Run a grid of trainings, such as depths x budgets, and write a row of results for each."""
    from automodel_cli.recipes.sweep import grid as recipe

    with console.reporter("sweep") as reporter:
        return recipe.run(cfg, Invocation.of(context).launch, reporter).exit_code


@command(
    SweepFitConfig,
    arguments=("results",),
    examples=(
        "automodel sweep fit points.csv --budget 1e21",
        "automodel sweep fit runs/sweep --metric bpb --json",
        "automodel sweep fit points.csv --where dataset=books --predict 124e6:2.5e9",
    ),
)
def fit(cfg: SweepFitConfig) -> int:
    """Fit a scaling law with error bars: exponents, and the best size, tokens and loss for a budget."""
    from automodel_cli.recipes.sweep import fit as recipe
    from automodel_cli.scaling.report import as_json

    found = recipe.run(cfg)
    if cfg.as_json:
        show_json(as_json(found.analysis, found.optima, found.predictions))
    else:
        _show(found)
    return 0


@command(
    SweepPlotConfig,
    arguments=("results",),
    examples=(
        "automodel sweep plot runs/sweep",
        "automodel sweep plot points.csv --budget 1e21 -o scaling.svg",
    ),
)
def plot(cfg: SweepPlotConfig) -> None:
    """Draw isoFLOP curves, and the best size and the loss against compute with their intervals."""
    from automodel_cli.recipes.sweep import plot as recipe

    for path in recipe.run(cfg):
        console.say(f"wrote {path}")


def _show(found: Fit) -> None:
    console.say(_about_points(found))
    _show_law(found)
    if found.analysis.parabolas:
        _show_parabolas(found)
    _show_optima(found)
    _show_predictions(found)
    _show_back_test(found.analysis)
    for number, note in enumerate(found.analysis.notes()):
        console.say("\n" * (not number) + f"note: {note}")


def _about_points(found: Fit) -> str:
    points, cost = found.analysis.points, found.analysis.cost
    power = "" if cost.power == 1 else f"^{cost.power:.3f}"
    budgets = f", {len(points.budgets)} budgets" if len(points.budgets) else ""
    return f"{found.source}: {len(points)} points{budgets}, compute C = {cost.factor:.3g} N{power} D"


def _show_law(found: Fit) -> None:
    from automodel_cli.scaling.report import TERMS

    percent = f"{found.analysis.level:.0%} interval"
    rows = [(name, *_cells(found.analysis.term(name), ".4g")) for name in TERMS]
    rows += [(text, *_cells(found.analysis.exponent(name), ".4f")) for name, text in _EXPONENTS.items()]
    if found.analysis.parabolas:
        rows.append(("a, from parabolas", *_cells(found.analysis.parabola_exponent(), ".4f")))
    headings = ("L = E + A / N^alpha + B / D^beta", "fit", percent)
    console.table("\nlaw", headings, rows, right=headings[1:2])


def _show_parabolas(found: Fit) -> None:
    rows = []
    for number, one in enumerate(found.analysis.parabolas):
        sizes = " to ".join(map(short, one.sizes))
        count = int(found.analysis.points.of_budget(number).sum())
        vertex = _sizes(found.analysis.vertex(number))
        flag = "" if one.flag == "ok" else one.flag
        rows.append((f"{one.budget:.3g}", str(count), sizes, *vertex, _loss(one.loss), flag))
    headings = ("budget", "points", "sizes", "vertex", "interval", "loss", "")
    console.table("\nisoFLOP parabolas", headings, rows, right=("budget", "points", "vertex", "loss"))


def _show_optima(found: Fit) -> None:
    has_depth = any(one.depth is not None for one in found.optima)
    rows = []
    for one in found.optima:
        ratio = one.tokens.value / one.params.value
        numbers = (*_sizes(one.params), *_sizes(one.tokens), f"{ratio:.3g}", *_cells(one.loss, ".4f"))
        depth = (str(one.depth or ""),) if has_depth else ()
        rows.append((f"{one.budget:.3g}", *numbers, *depth))
    depth_heading = ("depth",) if has_depth else ()
    headings = ("budget", "N_opt", "interval", "D_opt", "interval", "D/N", "loss", "interval", *depth_heading)
    console.table(
        "\nbest for a budget, by the law",
        headings,
        rows,
        right=("budget", "N_opt", "D_opt", "D/N", "loss", "depth"),
    )


def _show_predictions(found: Fit) -> None:
    if not found.predictions:
        return
    rows = [
        (short(one.params), short(one.tokens), *_cells(one.law, ".4f"), _range(one.run, ".4f"))
        for one in found.predictions
    ]
    headings = ("params", "tokens", "loss", "interval", "interval of a run")
    console.table("\npredictions of the law", headings, rows, right=headings[:3])
    least, most = found.predictions[0].gammas
    gammas = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    wider = [(short(one.params), short(one.tokens), *_cells(one.run_any_gamma, ".4f")) for one in found.predictions]
    title = f"\npredictions of E + (A / N^alpha + B / D^beta)^gamma, gamma {gammas}"
    console.table(title, ("params", "tokens", "loss", "interval of a run"), wider, right=headings[:3])


def _show_back_test(found: Analysis) -> None:
    test = found.back_test
    if test is None:
        return
    off, low, high = (math.expm1(value) for value in (test.off.value, test.off.low, test.off.high))
    console.say(
        f"\nback-test: the law of the budgets up to {test.fitted_to:.3g} FLOPs, and the runs of {test.budget:.3g}\n"
        f"  off by {off:+.2%} on average; of a law that holds {found.level:.0%} lie within {low:+.2%} to {high:+.2%}\n"
        f"  {test.inside} of {plural(test.runs, 'run')} inside the interval of a run"
    )


def _cells(interval: Interval, form: str) -> tuple[str, str]:
    return _loss(interval.value, form), _range(interval, form)


def _range(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval.low == interval.low else "none"


def _sizes(interval: Interval) -> tuple[str, str]:
    if interval.value != interval.value:
        return "none", ""
    ends = f"{short(interval.low)} to {short(interval.high)}" if interval.low == interval.low else "none"
    return short(interval.value), ends


def _loss(value: float, form: str = ".4f") -> str:
    return f"{value:{form}}" if value == value else "none"
