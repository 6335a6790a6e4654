"""Everything that is said of a set of points: the law, the parabolas, their intervals, optima and doubts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.scaling.backtest import BackTest, back_test
from automodel_cli.scaling.bootstrap import (
    Interval,
    ResampledVertices,
    noise_of_runs,
    resampled_laws,
    resampled_parabolas,
)
from automodel_cli.scaling.joint_form import JointForm, joint_form
from automodel_cli.scaling.law import EXPONENT_LIMITS, HUBER_DELTA, Laws, fit_law
from automodel_cli.scaling.optima import Cost, best_size, exponents_of, fit_cost, nearest_depth
from automodel_cli.scaling.parabolas import Parabola, PowerLaw, fit_parabolas, size_law
from automodel_cli.scaling.points import Points
from automodel_cli.text import plural

BIAS_SOURCE = "Czech et al. 2026, arXiv 2603.22339"
_BIASED_EXPONENT, _BIASED_SIZE = 0.01, 0.1
_MISFIT = 0.015  # of log loss; more than seeds differ by


@dataclass(frozen=True)
class Optimum:
    """The best model for a budget, as the law has it; ``parabola_params`` is the same from the parabolas' line."""

    budget: float
    params: Interval
    tokens: Interval
    loss: Interval
    parabola_params: Interval
    depth: int | None


@dataclass(frozen=True)
class Prediction:
    """Loss of a model that was not among the points: of the law, and of one run with noise like the points'.

    Attributes:
        run_any_gamma: of one run, if the law's two terms act together (``joint_form.py``).
        gammas: the least and the largest gamma of that form that the points do not contradict.
    """

    params: float
    tokens: float
    law: Interval
    run: Interval
    run_any_gamma: Interval
    gammas: tuple[float, float]


@dataclass(frozen=True)
class Bias:
    """What parabolas make of points that follow the fitted law exactly, at the same sizes and tokens.

    Attributes:
        exponent, law_exponent: of N_opt over compute, from the parabolas and the true one.
        size_ratios: N at the vertex over the law's N_opt, a budget each, NaN where the vertex is flagged.
    """

    exponent: float
    law_exponent: float
    size_ratios: np.ndarray

    @property
    def is_notable(self) -> bool:
        """Whether parabolas mislead on this grid."""
        off = np.abs(self.size_ratios[np.isfinite(self.size_ratios)] - 1)
        return abs(self.exponent - self.law_exponent) > _BIASED_EXPONENT or bool((off > _BIASED_SIZE).any())


@dataclass(frozen=True)
class Analysis:
    """The fits of one set of points and their resamples."""

    points: Points
    level: float
    delta: float
    cost: Cost
    law: Laws
    laws: Laws
    parabolas: list[Parabola]
    vertices: ResampledVertices
    bias: Bias
    seed: int

    def interval(self, of: Callable[[Laws], np.ndarray]) -> Interval:
        """A number that follows from a law, with its interval."""
        return Interval.of(of(self.law), of(self.laws), self.level)

    def term(self, name: str) -> Interval:
        """``E``, ``A``, ``B``, ``alpha`` or ``beta`` of the law."""
        return self.interval(lambda law: getattr(law, name))

    def exponent(self, name: str) -> Interval:
        """``a``, ``b`` or ``c``: an exponent of compute, from the law."""
        return self.interval(lambda law: getattr(exponents_of(law, self.cost), name))

    def size_law(self) -> PowerLaw:
        """The parabolas' line of N_opt over compute."""
        return size_law(self.parabolas)

    def parabola_exponent(self) -> Interval:
        """Exponent of N_opt over compute, from the parabolas."""
        return Interval.of(self.size_law().exponent, self.vertices.size_law.exponent, self.level)

    def vertex(self, number: int) -> Interval:
        """N at the vertex of a budget's parabola."""
        with np.errstate(over="ignore"):  # a resample whose parabola is nearly a line
            resampled = np.exp(self.vertices.log_params[:, number])
        return Interval.of(self.parabolas[number].params, resampled, self.level)

    def optimum(self, budget: float) -> Optimum:
        """The best size, tokens and loss for a budget."""

        def size(law: Laws) -> np.ndarray:
            return best_size(law, budget, self.cost)

        params = self.interval(size)
        from_parabolas = self.size_law().at(budget), self.vertices.size_law.at(budget)
        return Optimum(
            budget,
            params,
            self.interval(lambda law: self.cost.tokens(budget, size(law))),
            self.interval(lambda law: law.loss(size(law), self.cost.tokens(budget, size(law)))),
            Interval.of(*from_parabolas, self.level),
            nearest_depth(params.value, self._sizes()),
        )

    def predict(self, params: float, tokens: float) -> Prediction:
        """The loss at a size and a number of tokens."""

        def loss(law: Laws) -> np.ndarray:
            return law.loss(params, tokens)

        noise = np.random.default_rng([self.seed, 3]).choice(noise_of_runs(self.points, self.law), self.laws.alpha.size)
        run = Interval.of(loss(self.law), loss(self.laws) * np.exp(noise), self.level)
        any_gamma = self.joint_form.interval_of_a_run(params, tokens, self.level, run)
        return Prediction(params, tokens, self.interval(loss), run, any_gamma, self.joint_form.gammas)

    @cached_property
    def joint_form(self) -> JointForm:
        """The fits of the form in which the two terms act together."""
        resamples = self.laws.alpha.size
        return joint_form(self.points, self.law, delta=self.delta, resamples=resamples, seed=self.seed)

    def residuals(self) -> np.ndarray:
        """log L minus the law's, of each point."""
        return np.log(self.points.loss / self.law.loss(self.points.params, self.points.tokens))

    @cached_property
    def back_test(self) -> BackTest | None:
        """The runs of the largest budget against the law of the others; None with too few budgets or runs."""
        resamples = self.laws.alpha.size
        return back_test(self.points, level=self.level, delta=self.delta, resamples=resamples, seed=self.seed)

    def _sizes(self) -> list[tuple[float, float]]:
        depths = self.points.extras.get("depth", np.empty(0))
        return [(depth, size) for depth, size in zip(depths, self.points.params, strict=False) if np.isfinite(depth)]

    def notes(self) -> list[str]:
        """Doubts about the fits, for people; empty where there are none."""
        return [*self.points.notes, *_notes_on_points(self), *_notes_on_law(self), *_notes_on_parabolas(self)]


def analyze(
    points: Points, *, level: float = 0.9, resamples: int = 1000, seed: int = 0, delta: float = HUBER_DELTA
) -> Analysis:
    """Fit the law and the parabolas, and both again to ``resamples``.

    Raises:
        DataError: too few points, or all of one budget.
    """
    if len(points.budgets) == 1 and (points.group == 0).all():
        raise DataError(
            f"all {len(points)} points have one budget, {points.budgets[0]:.3g} FLOPs: how loss and the best "
            "size move with compute cannot be told",
            "add runs of at least one more budget; four make intervals worth having",
        )
    law, cost = fit_law(points, delta=delta), fit_cost(points)
    parabolas = fit_parabolas(points)
    laws = resampled_laws(points, law, delta=delta, number=resamples, seed=seed)
    vertices = resampled_parabolas(points, parabolas, number=resamples, seed=seed)
    bias = parabola_bias(points, law, cost)
    return Analysis(points, level, delta, cost, law, laws, parabolas, vertices, bias, seed)


def parabola_bias(points: Points, law: Laws, cost: Cost) -> Bias:
    """What the parabolas would say if the points followed ``law`` without noise."""
    exact = fit_parabolas(points.with_loss(law.loss(points.params, points.tokens)))
    ratios = [one.params / float(best_size(law, one.budget, cost)) if one.flag == "ok" else np.nan for one in exact]
    return Bias(float(size_law(exact).exponent), float(exponents_of(law, cost).a), np.array(ratios))


# -------------------------------------------------------------------------------------------- in words


def _notes_on_points(found: Analysis) -> list[str]:
    notes = []
    if not len(found.points.budgets):
        notes.append("no two points have the same compute: no parabolas, the law only")
    elif alone := int((found.points.group < 0).sum()):
        notes.append(f"{plural(alone, 'point')} of a budget of their own: in the law, in no parabola")
    if found.cost.is_poor:
        notes.append(f"compute deviates by up to {found.cost.spread:.0%} from k N^p D: optima may be off by as much")
    return notes


def _notes_on_law(found: Analysis) -> list[str]:
    law, notes = found.law, []
    if law.E == 0:
        notes.append("E is 0: these points do not reach where the loss levels off; expect too little of extrapolation")
    for name, factor, exponent in (("A", law.A, law.alpha), ("B", law.B, law.beta)):
        if factor == 0 or exponent in EXPONENT_LIMITS:
            notes.append(f"the points do not determine the term of {name}: no optimum follows from this law")
    return [*notes, *_notes_on_outliers(found), *(_notes_on_form(found) or _notes_on_back_test(found))]


def _notes_on_outliers(found: Analysis) -> list[str]:
    """The point that is farthest off, where that is more than five times the spread of the others."""
    residuals = found.residuals()
    spread = 1.4826 * np.median(np.abs(residuals)) * residuals.size / (residuals.size - 5)
    worst = int(np.argmax(np.abs(residuals)))
    if np.abs(residuals[worst]) <= max(5 * spread, 1e-6):
        return []
    point = f"N {found.points.params[worst]:.3g}, D {found.points.tokens[worst]:.3g}"
    return [
        f"the point at {point} lies {np.expm1(residuals[worst]):+.1%} off the law, where others lie about "
        f"{spread:.2%} off: an outlier?"
    ]


def _notes_on_form(found: Analysis) -> list[str]:
    """Where the best loss of a budget is clearly not the law's: runs lie on curves, but not on curves of this form."""
    ok = [one for one in found.parabolas if one.flag == "ok" and one.loss > 0]
    best = [(one, float(found.optimum(one.budget).loss.value)) for one in ok]
    best = [(one, loss) for one, loss in best if np.isfinite(loss)]
    if not best:
        return []
    good, law = zip(*best, strict=True)
    off = np.log([one.loss for one in good]) - np.log(law)
    worst = int(np.argmax(np.abs(off)))
    scatter = _scatter_about_parabolas(found)
    if abs(off[worst]) <= max(_MISFIT, 5 * scatter):
        return []
    return [
        f"the law does not describe these points: at {good[worst].budget:.3g} FLOPs the best loss lies "
        f"{np.expm1(off[worst]):+.1%} off it, and runs only {scatter:.1%} off their parabolas; do not extrapolate "
        "(runs too short or sizes too small for a power law?)"
    ]


def _notes_on_back_test(found: Analysis) -> list[str]:
    """Where the law of the smaller budgets is clearly wrong about the runs of the largest."""
    test = found.back_test
    if test is None or not test.is_failed:
        return []
    return [
        f"the law of the budgets up to {test.fitted_to:.3g} FLOPs is wrong about the next, {test.budget:.3g}: its "
        f"{plural(test.runs, 'run')} ended {np.expm1(test.off.value):+.1%} off, more than noise explains; the law of "
        "all budgets may be as wrong beyond them, and intervals do not contain that"
    ]


def _scatter_about_parabolas(found: Analysis) -> float:
    """Spread of log loss about the parabolas, from all budgets that have points to spare; 0 where none has."""
    points, squares, spare = found.points, 0.0, 0
    for number, one in enumerate(found.parabolas):
        mine = points.of_budget(number)
        fitted = one.at(points.params[mine])
        if one.flag == "ok" and mine.sum() > 3 and (fitted > 0).all():
            squares += float((np.log(points.loss[mine] / fitted) ** 2).sum())
            spare += int(mine.sum()) - 3
    return float(np.sqrt(squares / spare)) if spare else 0.0


def _notes_on_parabolas(found: Analysis) -> list[str]:
    flagged = [one for one in found.parabolas if one.flag != "ok"]
    what = {
        "edge": "vertex outside the sizes that were run",
        "inverted": "parabola opens downwards",
        "few sizes": "fewer than three sizes",
    }
    notes = [f"{one.budget:.3g} FLOPs: {what[one.flag]}; left out of the line of optima" for one in flagged]
    bias = found.bias
    if bias.is_notable:
        ratios = bias.size_ratios[np.isfinite(bias.size_ratios)]
        sizes = f", and {_range(ratios)} times the best size" if ratios.size else ""
        notes.append(
            f"parabolas are biased on this grid: for points exactly on the fitted law they give N_opt ~ "
            f"C^{bias.exponent:.3f} where it is C^{bias.law_exponent:.3f}{sizes} "
            f"(wide or off-center sizes, alpha != beta: {BIAS_SOURCE}); prefer the law's"
        )
    return notes


def _range(values: Sequence[float] | np.ndarray) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
