"""The three-term law of loss, and its fit by variable projection.

    L(N, D) = E + A / N^alpha + B / D^beta        (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)

The fit minimizes sum of Huber(log L - log L(N, D)) with delta = 1e-3, as they do. For given exponents the law is
linear in (E, A, B), so those are solved for and only two unknowns are searched: variable projection (Golub and
Pereyra 1973, with Kaufman's Jacobian; for this law Czech et al. 2026, arXiv 2603.22339). The Huber loss is made of
weighted squares, reweighted in each iteration. A search in all five unknowns has many near-solutions: the published
fit of 2022 stopped before its minimum (Besiroglu et al. 2024, arXiv 2404.10102).

Many fits (starts, resamples) run side by side as one batch of arrays. Nothing here is random.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.scaling.points import Points
from automodel_cli.text import plural

HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022, section 3.3: residuals of log L beyond it count linearly."""
FEWEST_POINTS = 6
"""One more than there are unknowns."""
EXPONENT_LIMITS = (0.01, 3.0)

_STARTS = (0.15, 0.3, 0.5, 0.8)  # of both exponents: 16 pairs
_MOST_ITERATIONS = 100
_LONGEST_STEP = 0.2  # of an exponent in one iteration
_RIDGE, _ZERO = 1e-14, 1e-26  # keep a matrix invertible; an objective that is nothing but rounding
_SUBSETS = [list(some) for size in (3, 2, 1) for some in itertools.combinations(range(3), size)]


@dataclass(frozen=True)
class Laws:
    """One law or a batch of them: each field is a number or ``[batch]``."""

    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    objective: np.ndarray
    """Sum of the Huber losses that the fit ended at."""

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """L(N, D); arguments broadcast against the batch."""
        n, d = np.log(params), np.log(tokens)
        return self.E + self.A * np.exp(-self.alpha * n) + self.B * np.exp(-self.beta * d)

    def __getitem__(self, index: int) -> Laws:
        fields = (self.E, self.A, self.B, self.alpha, self.beta, self.objective)
        return Laws(*(field[index] for field in fields))


def fit_law(points: Points, *, delta: float = HUBER_DELTA) -> Laws:
    """The best law of all starts.

    Raises:
        DataError: fewer points than the law needs, or all of one size or one number of tokens.
    """
    distinct = min(np.unique(points.params).size, np.unique(points.tokens).size)
    if len(points) < FEWEST_POINTS or distinct < 3:
        raise DataError(
            f"{plural(len(points), 'point')} with {distinct} distinct sizes or token counts do not determine "
            "a law of five numbers",
            f"give at least {FEWEST_POINTS} points, of 3 sizes and 3 token counts",
        )
    starts = np.array(list(itertools.product(_STARTS, _STARTS)))
    weights = np.ones((len(starts), len(points)))
    laws = fit_batch(points, points.loss, weights, starts, delta=delta)
    return laws[int(np.argmin(laws.objective))]


def fit_batch(
    points: Points,
    loss: np.ndarray,
    weights: np.ndarray,
    exponents: np.ndarray,
    *,
    delta: float,
    tolerance: float = 1e-13,
) -> Laws:
    """A law for each row of ``weights`` ``[batch, n]``, from its start in ``exponents`` ``[batch, 2]``.

    Args:
        loss: ``[n]``, or ``[batch, n]``.
        weights: how often each point counts: ones, or a resample's counts.
        tolerance: a fit is done when its objective changes by less than this share.
    """
    problem = _Problem.of(points, np.broadcast_to(loss, weights.shape), weights, delta)
    with np.errstate(divide="ignore", invalid="ignore"):  # a trial without positive terms is not taken
        E, A, B, alpha, beta, objective = _minimized(problem, exponents, tolerance).T
    n, d = problem.center
    return Laws(E, A * np.exp(alpha * n), B * np.exp(beta * d), alpha, beta, objective)


def _minimized(problem: _Problem, exponents: np.ndarray, tolerance: float) -> np.ndarray:
    """The numbers ``[batch, 6]`` that each start ends at: damped steps, taken where the objective falls."""
    state = problem.begin(np.clip(exponents, *EXPONENT_LIMITS))
    damping, active = np.full(len(exponents), 1e-3), np.arange(len(exponents))
    found = np.empty((len(exponents), 6))
    for _ in range(_MOST_ITERATIONS):
        trial = problem.project(state, problem.step(state, damping))
        change = state.objective - trial.objective
        done = (np.abs(change) <= tolerance * state.objective + _ZERO) | (damping >= 1e8)
        damping = np.clip(np.where(change > 0, damping / 3, damping * 5), 1e-9, 1e8)
        state = state.replaced(trial, change > 0)
        found[active] = state.numbers()
        if done.all():
            break
        problem, state = problem.rows(~done), state.rows(~done)
        damping, active = damping[~done], active[~done]
    return found


@dataclass(frozen=True)
class _State:
    """Where the batch is: ``exponents`` ``[batch, 2]``, ``terms`` (E and the two others) ``[batch, 3]``.

    ``design`` ``[batch, n, 3]`` holds what the terms multiply, ``fitted`` ``[batch, n]`` the product.
    """

    exponents: np.ndarray
    terms: np.ndarray
    design: np.ndarray
    fitted: np.ndarray
    objective: np.ndarray

    def replaced(self, other: _State, where: np.ndarray) -> _State:
        """The rows of ``other`` in the places of ``where`` ``[batch]``."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return _State(*(np.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old) for old, new in pairs))

    def rows(self, where: np.ndarray) -> _State:
        """Some of the batch."""
        return _State(*(getattr(self, name)[where] for name in self.__dataclass_fields__))

    def numbers(self) -> np.ndarray:
        """E and the two terms at the points' mean, alpha, beta, the objective: ``[batch, 6]``."""
        return np.column_stack([self.terms, self.exponents, self.objective])


@dataclass(frozen=True)
class _Problem:
    """Points as logarithms about their means (A and B then have the size of losses), and what is minimized."""

    n: np.ndarray
    d: np.ndarray
    log_loss: np.ndarray
    center: tuple[float, float]
    weights: np.ndarray
    delta: float

    @classmethod
    def of(cls, points: Points, loss: np.ndarray, weights: np.ndarray, delta: float) -> _Problem:
        n, d = np.log(points.params), np.log(points.tokens)
        center = float(n.mean()), float(d.mean())
        return cls(n - center[0], d - center[1], np.log(loss), center, weights, delta)

    def rows(self, where: np.ndarray) -> _Problem:
        """Some of the batch."""
        return replace(self, log_loss=self.log_loss[where], weights=self.weights[where])

    def begin(self, exponents: np.ndarray) -> _State:
        """Terms of the relative least squares: log L - log L' is about 1 - L' / L."""
        design = self._design(exponents)
        relative = design / np.exp(self.log_loss)[..., None]
        terms = non_negative_least_squares(relative, np.ones_like(self.weights), self.weights)
        return self._state(exponents, terms, design)

    def project(self, state: _State, step: np.ndarray) -> _State:
        """The terms that fit the exponents after ``step``: least squares of residuals linear about the present fit."""
        exponents = np.clip(state.exponents + step, *EXPONENT_LIMITS)
        design = self._design(exponents)
        before = np.einsum("bni,bi->bn", design, state.terms)
        target = 1 + self.log_loss - np.log(before)
        weights = self._reweighted(self.log_loss - np.log(state.fitted))
        terms = non_negative_least_squares(design / before[..., None], target, weights)
        return self._state(exponents, terms, design)

    def step(self, state: _State, damping: np.ndarray) -> np.ndarray:
        """A damped Gauss-Newton step of the exponents ``[batch, 2]``, in the space that the terms do not reach."""
        residual = self.log_loss - np.log(state.fitted)
        columns = np.empty((*residual.shape, 6))  # of the terms, of the exponents, the residual
        columns[..., :3] = state.design / state.fitted[..., None]
        columns[..., 3] = -state.terms[:, 1:2] * columns[..., 1] * self.n
        columns[..., 4] = -state.terms[:, 2:3] * columns[..., 2] * self.d
        columns[..., 5] = residual
        weighted = np.swapaxes(columns * self._reweighted(residual)[..., None], 1, 2)
        products = weighted @ columns
        linear, mixed = products[:, :3, :3], products[:, :3, 3:]
        linear = linear + _RIDGE * np.einsum("bii->bi", linear)[:, None, :] * np.eye(3)
        rest = products[:, 3:, 3:] - np.swapaxes(mixed, 1, 2) @ np.linalg.solve(linear, mixed)
        normal, right = rest[:, :2, :2], rest[:, :2, 2:]
        own = np.einsum("bii->bi", products)[:, 3:5]
        ridge = damping[:, None] * np.einsum("bii->bi", normal) + _RIDGE * own + _ZERO
        step = np.linalg.solve(normal + ridge[:, None, :] * np.eye(2), right)[..., 0]
        return np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)

    def _design(self, exponents: np.ndarray) -> np.ndarray:
        powers = np.exp(-exponents[:, :1] * self.n), np.exp(-exponents[:, 1:] * self.d)
        return np.stack([np.ones_like(powers[0]), *powers], axis=-1)

    def _state(self, exponents: np.ndarray, terms: np.ndarray, design: np.ndarray) -> _State:
        fitted = np.einsum("bni,bi->bn", design, terms)
        objective = (self.weights * huber(self.log_loss - np.log(fitted), self.delta)).sum(axis=1)
        return _State(exponents, terms, design, fitted, objective)

    def _reweighted(self, residual: np.ndarray) -> np.ndarray:
        """Weights that make squares of Huber losses: delta / |r| beyond delta."""
        return self.weights * (self.delta / np.maximum(np.abs(residual), self.delta))


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Half the square up to ``delta``, a line with the same slope beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def non_negative_least_squares(design: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Three non-negative terms for each problem of a batch: the best of all subsets whose solution has no negative.

    Args:
        design: ``[batch, n, 3]``; target and weights are ``[batch, n]``.
    """
    norms = _norms(design)
    weighted = np.swapaxes(design / norms, 1, 2) * weights[:, None, :]
    normal, right = weighted @ (design / norms), weighted @ target[..., None]
    terms = np.zeros(right.shape[:2])
    best = np.full(len(terms), np.inf)
    left = np.arange(len(terms))
    for some in _SUBSETS:
        part = normal[left][:, some][:, :, some]
        part = part + _RIDGE * np.einsum("bii->b", part)[:, None, None] * np.eye(len(some))
        solved = np.linalg.solve(part, right[left][:, some])[..., 0]
        value = -(solved * right[left][:, some, 0]).sum(axis=1)
        good = (solved >= 0).all(axis=1) & (value < best[left])
        rows = left[good]
        best[rows], terms[rows] = value[good], 0.0
        terms[np.ix_(rows, some)] = solved[good]
        if len(some) == 3:
            left = left[~good]  # nobody does better with less
        if not left.size:
            break
    return terms / norms[:, 0]


def _norms(columns: np.ndarray) -> np.ndarray:
    """Lengths of columns, ``[batch, 1, k]``."""
    return np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), 1e-300)
