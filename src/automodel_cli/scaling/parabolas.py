"""IsoFLOP parabolas: for each budget a parabola of loss over log N, whose vertex is the best size.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): N_opt ~ C^a is a straight line through the
vertices, both axes logarithmic. A vertex counts only where the parabola opens upwards and the vertex lies between
the sizes that were run; everything else is an extrapolation, and is flagged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from automodel_cli.scaling.points import Points

FEWEST_SIZES = 3

Flag = Literal["ok", "edge", "inverted", "few sizes"]


@dataclass(frozen=True)
class Parabola:
    """One budget: L = ``curve[0]`` + ``curve[1]`` x + ``curve[2]`` x^2 with x = log N - ``center``.

    Attributes:
        sizes: smallest and largest N that was run.
        flag: ``edge``: the vertex lies outside ``sizes``; ``inverted``: the parabola opens downwards and has no
            minimum; ``few sizes``: fewer than three, so there is no parabola.
        params, loss: N and L at the vertex; NaN without one.
    """

    budget: float
    center: float
    curve: tuple[float, float, float]
    sizes: tuple[float, float]
    flag: Flag
    params: float
    loss: float

    def at(self, params: np.ndarray) -> np.ndarray:
        """The parabola's loss at these sizes."""
        x = np.log(params) - self.center
        return self.curve[0] + self.curve[1] * x + self.curve[2] * x**2


@dataclass(frozen=True)
class PowerLaw:
    """value = ``exp(level)`` * C ** ``exponent``: numbers or ``[batch]``, NaN with fewer than two vertices."""

    level: np.ndarray
    exponent: np.ndarray

    def at(self, budget: float) -> np.ndarray:
        """The value at a budget."""
        return np.exp(self.level + self.exponent * np.log(budget))


def fit_parabolas(points: Points) -> list[Parabola]:
    """A parabola for each budget of the points, in their order."""
    return [_fit_one(points, number) for number in range(len(points.budgets))]


def _fit_one(points: Points, number: int) -> Parabola:
    mine = points.of_budget(number)
    sizes = float(points.params[mine].min()), float(points.params[mine].max())
    center, design = design_of(points, number)
    if np.unique(points.params[mine]).size < FEWEST_SIZES:
        nothing = (np.nan,) * 3
        return Parabola(points.budgets[number], center, nothing, sizes, "few sizes", np.nan, np.nan)
    curve = np.linalg.lstsq(design, points.loss[mine], rcond=None)[0]
    vertex, loss = (float(value) for value in vertices(curve))
    inside = np.log(sizes[0]) <= vertex + center <= np.log(sizes[1])
    flag: Flag = "inverted" if np.isnan(vertex) else "ok" if inside else "edge"
    budget = float(points.budgets[number])
    with np.errstate(over="ignore"):  # of a parabola that is nearly a line
        params = float(np.exp(vertex + center))
    return Parabola(budget, center, tuple(curve), sizes, flag, params, loss)


def design_of(points: Points, number: int) -> tuple[float, np.ndarray]:
    """Mean of log N of a budget, and 1, x, x^2 of its points with x about that mean: ``[n, 3]``."""
    n = np.log(points.params[points.of_budget(number)])
    center = float(n.mean())
    return center, np.vander(n - center, 3, increasing=True)


def vertices(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and loss at the vertex of each parabola ``[..., 3]``; NaN where it does not open upwards."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(curves[..., 2] > 0, -curves[..., 1] / (2 * curves[..., 2]), np.nan)
    return x, curves[..., 0] + curves[..., 1] * x / 2


def fit_power_law(budgets: np.ndarray, log_values: np.ndarray) -> PowerLaw:
    """The line through log values ``[..., budgets]`` over log budgets; NaN values are left out."""
    good = np.isfinite(log_values)
    count = good.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(good, np.log(budgets), 0.0)
        y = np.where(good, log_values, 0.0)
        mean_x, mean_y = x.sum(axis=-1) / count, y.sum(axis=-1) / count
        around = np.where(good, x - mean_x[..., None], 0.0)
        exponent = (around * y).sum(axis=-1) / (around**2).sum(axis=-1)
    exponent = np.where(count >= 2, exponent, np.nan)
    return PowerLaw(mean_y - exponent * mean_x, exponent)


def size_law(parabolas: list[Parabola]) -> PowerLaw:
    """N_opt over compute, through the vertices that count."""
    sizes = [np.log(parabola.params) if parabola.flag == "ok" else np.nan for parabola in parabolas]
    return fit_power_law(np.array([parabola.budget for parabola in parabolas]), np.array(sizes))
