"""Intervals by bootstrap, for the law and for the parabolas: seeded, and within the design of the budgets.

The law is fitted to resamples of the points, drawn with replacement within each budget, so that every resample has
all budgets (Besiroglu et al. 2024, arXiv 2404.10102, resample points too). A budget has few sizes, and a parabola
without two of five is another parabola, so there the sizes stay and the residuals are drawn: each divided by
sqrt(1 - leverage), which gives it the variance of the noise (Davison and Hinkley 1997, section 6.2), from all budgets
together. The ends of an interval are quantiles of the refitted values. Coverage measured: docs/guides/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automodel_cli.scaling.law import Laws, fit_batch
from automodel_cli.scaling.parabolas import (
    FEWEST_SIZES,
    Parabola,
    PowerLaw,
    design_of,
    fit_power_law,
    vertices,
)
from automodel_cli.scaling.points import Points

_TOLERANCE = 1e-6  # of a resample's objective: far below what resamples differ by
_BATCH_ENTRIES = 100_000  # points times resamples that are fitted side by side


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval; NaN ends where there is none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: np.ndarray | float, resampled: np.ndarray, level: float) -> Interval:
        """Quantiles of the resampled values; none where more than a tenth of the resamples have no such value."""
        finite = resampled[np.isfinite(resampled)]
        if finite.size < 0.9 * resampled.size or not finite.size:
            return cls(float(value), np.nan, np.nan)
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(value), float(low), float(high))


def resample_counts(points: Points, number: int, seed: int) -> np.ndarray:
    """How often each point is drawn, ``[number, n]``: with replacement within its budget, or among those of none."""
    generator = np.random.default_rng([seed, 1])
    counts = np.zeros((number, len(points)))
    for group in np.unique(points.group):
        mine = np.flatnonzero(points.group == group)
        counts[:, mine] = generator.multinomial(mine.size, np.full(mine.size, 1 / mine.size), number)
    return counts


def resampled_laws(points: Points, law: Laws, *, delta: float, number: int, seed: int) -> Laws:
    """``number`` laws, each fitted to a resample of the points from the law of all of them."""
    counts = resample_counts(points, number, seed)
    start = np.array([law.alpha, law.beta], dtype=float)
    parts = np.array_split(counts, max(1, -(-counts.size // _BATCH_ENTRIES)))
    fitted = [
        fit_batch(points, points.loss, part, np.tile(start, (len(part), 1)), delta=delta, tolerance=_TOLERANCE)
        for part in parts
    ]
    return Laws(*(np.concatenate([getattr(laws, name) for laws in fitted]) for name in _FIELDS))


_FIELDS = ("E", "A", "B", "alpha", "beta", "objective")


def leverages(points: Points, law: Laws) -> np.ndarray:
    """How much each point draws the law to itself, in [0, 1): diagonal of the hat matrix of the linearized fit."""
    n, d = np.log(points.params), np.log(points.tokens)
    powers = np.stack([np.ones_like(n), np.exp(-law.alpha * n), np.exp(-law.beta * d)], axis=-1)
    slopes = powers[:, 1:] * np.stack([n - n.mean(), d - d.mean()], axis=-1)
    columns = np.hstack([powers, slopes]) / law.loss(points.params, points.tokens)[:, None]
    basis = np.linalg.qr(columns / np.linalg.norm(columns, axis=0))[0]
    return np.minimum((basis**2).sum(axis=1), 0.95)


def noise_of_runs(points: Points, law: Laws) -> np.ndarray:
    """Residuals of log L about a law fitted to the points, with the variance of the noise: fits bend to points."""
    residuals = np.log(points.loss / law.loss(points.params, points.tokens))
    return residuals / np.sqrt(1 - leverages(points, law))


@dataclass(frozen=True)
class ResampledVertices:
    """Refitted parabolas: log N and loss at each vertex ``[number, budgets]``, NaN where it is flagged."""

    log_params: np.ndarray
    loss: np.ndarray
    size_law: PowerLaw


def resampled_parabolas(points: Points, parabolas: list[Parabola], *, number: int, seed: int) -> ResampledVertices:
    """``number`` times the parabolas of all budgets, through their fitted losses plus residuals drawn at random."""
    generator = np.random.default_rng([seed, 2])
    residuals = _residuals(points, parabolas)
    shape = number, len(parabolas)
    log_params, losses = np.full(shape, np.nan), np.full(shape, np.nan)
    for index, parabola in enumerate(parabolas):
        if parabola.flag == "few sizes":
            continue
        center, design = design_of(points, index)
        drawn = generator.choice(residuals, (number, len(design))) if residuals.size else 0.0
        refitted = (design @ parabola.curve + drawn) @ np.linalg.pinv(design).T
        x, loss = vertices(np.broadcast_to(refitted, (number, 3)))
        log_params[:, index], losses[:, index] = x + center, loss
    counted = np.array([parabola.flag == "ok" for parabola in parabolas], dtype=bool)
    law = fit_power_law(points.budgets, np.where(counted, log_params, np.nan))
    return ResampledVertices(log_params, losses, law)


def _residuals(points: Points, parabolas: list[Parabola]) -> np.ndarray:
    """Residuals of all budgets with the variance of the noise; a parabola through three points has none."""
    found = []
    for index, parabola in enumerate(parabolas):
        mine = points.of_budget(index)
        if parabola.flag == "few sizes" or mine.sum() <= FEWEST_SIZES:
            continue
        _, design = design_of(points, index)
        orthogonal = np.linalg.qr(design)[0]
        free = 1 - (orthogonal**2).sum(axis=1)
        residual = points.loss[mine] - design @ parabola.curve
        found.append((residual / np.sqrt(np.maximum(free, 0.05)))[free > 1e-9])
    return np.concatenate(found) if found else np.empty(0)
