"""What a prediction could be off by if the law has another form: one in which its two terms act together.

    L(N, D) = E + (A / N^alpha + B / D^beta)^gamma        (Busbridge et al. 2025, arXiv 2502.08606)

With gamma = 1 this is the law of ``law.py``; with gamma below 1 more data help the more, the larger the model is, and
losses beyond the points lie below that law. A bootstrap of one form knows nothing of another. Points seldom determine
gamma, so no single one is believed: the law is fitted with gamma fixed at each value of a grid, and the interval holds
those of all gammas that the points do not contradict. They contradict one if its residuals are larger than those of the
best gamma by more than an F test of one parameter allows, at 99%.

The fit for a gamma minimizes the same Huber loss of log L. Its five unknowns are searched together, with damped
Gauss-Newton steps from the fit of the next larger gamma; many resamples run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automodel_cli.scaling.bootstrap import Interval, resample_counts
from automodel_cli.scaling.law import Laws, huber
from automodel_cli.scaling.points import Points

GAMMAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""From the three-term law downwards; Busbridge et al. found 0.45."""
_UNKNOWNS = 6  # with gamma
_Z = 2.5758  # of the 99%
_STEEPEST = 3.0  # of an exponent times gamma
_MOST_ITERATIONS, _TOLERANCE = 100, 1e-5
_MOST_RESAMPLES = 300  # for each gamma; the ends are those of the widest anyway
_RIDGE = 1e-12


@dataclass(frozen=True)
class JointFit:
    """A fit for one gamma: E, log A, log B, alpha, beta about the points' means ``[5]``; its residuals ``[n]``."""

    gamma: float
    numbers: np.ndarray
    residuals: np.ndarray


@dataclass(frozen=True)
class JointForm:
    """Fits with each gamma; which of them the points do not contradict; of these below 1, resamples ``[number, 5]``."""

    points: Points
    fits: tuple[JointFit, ...]
    kept: tuple[float, ...]
    resamples: dict[float, np.ndarray]
    seed: int

    @property
    def gammas(self) -> tuple[float, float]:
        """The least and the largest that the points do not contradict."""
        return min(self.kept), max(self.kept)

    def interval_of_a_run(self, params: float, tokens: float, level: float, with_gamma_1: Interval) -> Interval:
        """The loss of one run with noise like the points', whatever gamma is; the value is that of the best gamma.

        Args:
            with_gamma_1: the interval of the three-term law, which is that of this form with gamma 1.
        """
        problem = _Problem.of(self.points)
        n, d = np.log(params) - problem.center[0], np.log(tokens) - problem.center[1]
        best = min(self.fits, key=lambda one: float((one.residuals**2).sum()))
        ends = [(with_gamma_1.low, with_gamma_1.high)] if 1.0 in self.kept else []
        for one in self.fits:
            if one.gamma not in self.resamples:
                continue
            generator = np.random.default_rng([self.seed, 5])
            spare = max(1, one.residuals.size - _UNKNOWNS + 1)
            noise = one.residuals * np.sqrt(one.residuals.size / spare)
            numbers = self.resamples[one.gamma]
            losses = _loss(numbers, one.gamma, n, d) * np.exp(generator.choice(noise, len(numbers)))
            ends.append(tuple(np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])))
        low, high = np.array(ends).T
        return Interval(float(_loss(best.numbers, best.gamma, n, d)), float(low.min()), float(high.max()))


def joint_form(points: Points, law: Laws, *, delta: float, resamples: int, seed: int) -> JointForm:
    """Fit with each gamma from ``law``, the fit with gamma 1, and resample those that are not contradicted."""
    problem, ones = _Problem.of(points), np.ones((1, len(points)))
    numbers, gamma_before = problem.numbers_of(law)[None], 1.0
    fits = []
    for gamma in GAMMAS:
        start = _moved(numbers, gamma / gamma_before)
        numbers, gamma_before = problem.fit(ones, start, gamma, delta), gamma
        fits.append(JointFit(gamma, numbers[0], problem.residuals(numbers, gamma)[0]))
    counts = resample_counts(points, min(resamples, _MOST_RESAMPLES), seed)
    kept = _not_contradicted(fits)
    drawn = {
        one.gamma: problem.fit(counts, np.tile(one.numbers, (len(counts), 1)), one.gamma, delta)
        for one in kept
        if one.gamma != 1.0
    }
    return JointForm(points, tuple(fits), tuple(one.gamma for one in kept), drawn, seed)


def _moved(numbers: np.ndarray, ratio: float) -> np.ndarray:
    """Where to begin with ``ratio`` times the gamma: each term alone would then be what it was."""
    return numbers / np.array([1.0, ratio, ratio, ratio, ratio])


def _not_contradicted(fits: list[JointFit]) -> list[JointFit]:
    squares = np.array([float((one.residuals**2).sum()) for one in fits])
    spare = fits[0].residuals.size - _UNKNOWNS
    if spare < 4:  # too few points to contradict anything
        return fits
    allowed = squares.min() * (1 + _t_quantile(spare) ** 2 / spare)
    good = squares <= max(allowed, 1e-18)
    near = good | np.append(good[1:], False) | np.append(False, good[:-1])  # gamma lies between those of the grid
    return [one for one, kept in zip(fits, near, strict=True) if kept]


def _t_quantile(freedom: int) -> float:
    """Of Student's t at 99% on both sides, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5)."""
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _loss(numbers: np.ndarray, gamma: float, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    """L at log sizes and log tokens about the points' means; ``numbers`` are ``[..., 5]``."""
    E, a, b, alpha, beta = np.moveaxis(numbers, -1, 0)
    return np.asarray(E + (np.exp(a - alpha * n) + np.exp(b - beta * d)) ** gamma)


@dataclass(frozen=True)
class _Problem:
    """Points as logarithms about their means."""

    n: np.ndarray
    d: np.ndarray
    log_loss: np.ndarray
    center: tuple[float, float]

    @classmethod
    def of(cls, points: Points) -> _Problem:
        n, d = np.log(points.params), np.log(points.tokens)
        return cls(n - n.mean(), d - d.mean(), np.log(points.loss), (float(n.mean()), float(d.mean())))

    def numbers_of(self, law: Laws) -> np.ndarray:
        """A three-term law as this form has it."""
        tiny = 1e-12  # a term that the law does not have
        a = np.log(max(float(law.A), tiny)) - law.alpha * self.center[0]
        b = np.log(max(float(law.B), tiny)) - law.beta * self.center[1]
        return np.array([law.E, a, b, law.alpha, law.beta], dtype=float)

    def residuals(self, numbers: np.ndarray, gamma: float) -> np.ndarray:
        """log L minus the form's, ``[batch, n]``."""
        return self.log_loss - np.log(_loss(numbers[:, None], gamma, self.n, self.d))

    def fit(self, weights: np.ndarray, start: np.ndarray, gamma: float, delta: float) -> np.ndarray:
        """The numbers ``[batch, 5]`` that each start ends at; ``weights`` ``[batch, n]`` say how often points count."""
        with np.errstate(all="ignore"):  # a trial beyond floating point is not taken
            return self._minimized(weights, start, gamma, delta)

    def _minimized(self, weights: np.ndarray, start: np.ndarray, gamma: float, delta: float) -> np.ndarray:
        numbers, active = self._clipped(start, gamma), np.arange(len(start))
        found, damping = numbers.copy(), np.full(len(start), 1e-3)
        objective = self._objective(numbers, weights, gamma, delta)
        for _ in range(_MOST_ITERATIONS):
            trial = self._clipped(numbers + self._step(numbers, weights, gamma, delta, damping), gamma)
            value = self._objective(trial, weights, gamma, delta)
            better = value < objective
            done = (np.abs(objective - value) <= _TOLERANCE * objective) | (damping >= 1e8)
            damping = np.clip(np.where(better, damping / 3, damping * 5), 1e-9, 1e8)
            numbers = np.where(better[:, None], trial, numbers)
            objective = np.where(better, value, objective)
            found[active] = numbers
            if done.all():
                break
            left = ~done
            numbers, weights, active = numbers[left], weights[left], active[left]
            objective, damping = objective[left], damping[left]
        return found

    def _clipped(self, numbers: np.ndarray, gamma: float) -> np.ndarray:
        least = np.array([0.0, -200.0, -200.0, 0.01, 0.01])
        steepest = _STEEPEST / gamma
        return np.clip(numbers, least, [np.exp(self.log_loss.min()), 200.0, 200.0, steepest, steepest])

    def _objective(self, numbers: np.ndarray, weights: np.ndarray, gamma: float, delta: float) -> np.ndarray:
        return (weights * huber(self.residuals(numbers, gamma), delta)).sum(axis=1)

    def _step(
        self, numbers: np.ndarray, weights: np.ndarray, gamma: float, delta: float, damping: np.ndarray
    ) -> np.ndarray:
        """A damped Gauss-Newton step of all numbers; Huber losses as squares that are weighted anew each time."""
        E, a, b, alpha, beta = (numbers[:, index : index + 1] for index in range(5))
        by_size, by_tokens = np.exp(a - alpha * self.n), np.exp(b - beta * self.d)
        inner = by_size + by_tokens
        loss = E + inner**gamma
        residual = self.log_loss - np.log(loss)
        outer = gamma * inner ** (gamma - 1)
        slopes = np.stack(
            [
                np.ones_like(loss),
                outer * by_size,
                outer * by_tokens,
                -outer * by_size * self.n,
                -outer * by_tokens * self.d,
            ],
            axis=1,
        )
        slopes = slopes / loss[:, None]
        counted = weights * (delta / np.maximum(np.abs(residual), delta))
        pull = (slopes @ (counted * residual)[..., None])[..., 0]
        slopes[:, 0] *= ~((E[:, 0] <= 0) & (pull[:, 0] < 0))[:, None]  # E stays at 0 where it would go below
        products = (slopes * counted[:, None]) @ np.swapaxes(slopes, 1, 2)
        own = np.einsum("bii->bi", products)
        ridge = (damping[:, None] + _RIDGE) * own + 1e-26
        right = slopes @ (counted * residual)[..., None]
        step = np.linalg.solve(products + ridge[:, None, :] * np.eye(5), right)[..., 0]
        return np.clip(step, -1.0, 1.0)
