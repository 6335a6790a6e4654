"""Synthetic surfaces of loss: runs of several sizes for each budget on a known law, with noise if asked for."""

from __future__ import annotations

import numpy as np

from automodel_cli.scaling.law import Laws
from automodel_cli.scaling.points import Points, make_points

HOFFMANN = Laws(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, objective=0.0)
"""The law that Hoffmann et al. 2022 published."""
SYMMETRIC = Laws(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31, objective=0.0)
STEEP = Laws(E=1.9, A=9000.0, B=300.0, alpha=0.6, beta=0.25, objective=0.0)
"""alpha and beta far apart."""
BUDGETS = (1e18, 3e18, 1e19, 3e19)


def best_size(law: Laws, budget: float) -> float:
    """N_opt with C = 6 N D, by equation 4 of Hoffmann et al. 2022."""
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    return ratio * (budget / 6) ** (law.beta / (law.alpha + law.beta))


def surface(
    law: Laws = HOFFMANN,
    *,
    budgets: tuple[float, ...] = BUDGETS,
    sizes: int = 7,
    span: float = 8.0,
    center: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Runs of ``sizes`` sizes for each budget, from best / span to best * span, times ``center``.

    Args:
        noise: standard deviation of log loss.
    """
    around = center * np.geomspace(1 / span, span, sizes)
    params = np.concatenate([best_size(law, budget) * around for budget in budgets])
    budget = np.repeat(budgets, sizes)
    tokens = budget / (6 * params)
    factor = np.exp(noise * np.random.default_rng(seed).standard_normal(params.size))
    return make_points(params, tokens, law.loss(params, tokens) * factor, budget)
