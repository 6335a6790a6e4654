"""The best size and number of tokens for a budget, and what the loss is there.

Compute is C = k N^(1 + kappa) D. The convention C = 6 N D is k = 6, kappa = 0; where rows say what they cost, k and
kappa are fitted to that, because attention and the head make small models dearer a parameter than large ones. With
D = (C / k) N^-(1 + kappa) put into the law, its derivative is zero at

    N_opt = (alpha A / ((1 + kappa) beta B) * (C / k)^beta) ^ (1 / (alpha + (1 + kappa) beta))

which for k = 6 is equation 4 of Hoffmann et al. 2022 (arXiv 2203.15556): N_opt ~ C^a with a = beta / (alpha + beta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automodel_cli.scaling.law import Laws
from automodel_cli.scaling.points import FLOPS_PER_PARAM_TOKEN, Points

_ROUNDING = 0.02  # relative: tokens are whole steps, published figures are rounded
_POOR = 0.1


@dataclass(frozen=True)
class Cost:
    """FLOPs of a training: ``factor * params ** power * tokens``; ``spread`` is the largest relative deviation."""

    factor: float = FLOPS_PER_PARAM_TOKEN
    power: float = 1.0
    spread: float = 0.0

    def tokens(self, budget: np.ndarray | float, params: np.ndarray | float) -> np.ndarray:
        """D that a budget pays for at a size."""
        return np.asarray(budget) / (self.factor * np.asarray(params) ** self.power)

    @property
    def is_poor(self) -> bool:
        """Whether the points' own compute is badly described."""
        return self.spread > _POOR


def fit_cost(points: Points) -> Cost:
    """The cost that the points' compute says: 6 N D where that is meant, else least squares in logarithms."""
    each = np.log(points.flops / (points.params * points.tokens))
    n = np.log(points.params)
    plain = Cost(spread=_spread(each - np.log(FLOPS_PER_PARAM_TOKEN)))
    if plain.spread <= _ROUNDING or np.ptp(n) == 0:
        return plain
    slope, level = np.polyfit(n - n.mean(), each, 1)
    spread = _spread(each - level - slope * (n - n.mean()))
    return Cost(float(np.exp(level - slope * n.mean())), float(1 + slope), spread)


def _spread(residuals: np.ndarray) -> float:
    return float(np.expm1(np.abs(residuals)).max())


@dataclass(frozen=True)
class Exponents:
    """N_opt ~ C^a, D_opt ~ C^b, L_opt - E ~ C^-c: numbers or ``[batch]``."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


def exponents_of(law: Laws, cost: Cost) -> Exponents:
    """How the optimum of a law moves with compute."""
    total = law.alpha + cost.power * law.beta
    return Exponents(law.beta / total, law.alpha / total, law.alpha * law.beta / total)


def best_size(law: Laws, budget: float, cost: Cost) -> np.ndarray:
    """N_opt; NaN for a law without one (A or B is zero)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(law.alpha * law.A) - np.log(cost.power * law.beta * law.B)
        found = (ratio + law.beta * np.log(budget / cost.factor)) / (law.alpha + cost.power * law.beta)
        return np.where(np.isfinite(found), np.exp(found), np.nan)


def nearest_depth(params: float, sizes: Sequence[tuple[float, float]]) -> int | None:
    """The depth whose model is nearest in log N; ``sizes`` are (depth, params) of the runs.

    Between and beyond the depths that were run sizes follow a straight line in logarithms. None with fewer than two.
    """
    known = dict(sorted(sizes))
    if len(known) < 2 or not np.isfinite(params):
        return None
    depths, logs = np.log(list(known)), np.log(list(known.values()))
    left = int(np.clip(np.searchsorted(logs, np.log(params)) - 1, 0, len(known) - 2))
    slope = (logs[left + 1] - logs[left]) / (depths[left + 1] - depths[left])
    around = np.exp(depths[left] + (np.log(params) - logs[left]) / slope) if slope > 0 else np.nan
    if not np.isfinite(around):
        return None
    whole = max(1.0, np.floor(around))
    size = [logs[left] + slope * (np.log(depth) - depths[left]) for depth in (whole, whole + 1)]
    return int(whole + (abs(size[1] - np.log(params)) < abs(size[0] - np.log(params))))
