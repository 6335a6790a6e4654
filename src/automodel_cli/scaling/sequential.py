"""A sequential test of paired differences: looked at after every pair, it still errs at its level. Pure arithmetic.

The differences d_1, d_2, ... are taken as normal with unknown mean and variance. For each mean mu there is a process
that is a martingale if mu is true, the likelihood ratio of the t statistic with a normal prior on the effect size (mean
over standard deviation, prior variance tau^2):

    M_n(mu) = A^(-1/2) ((1 + x) / (1 + x / A))^(n/2),   x = n (mean - mu)^2 / ((n - 1) s^2),   A = 1 + n tau^2

By Ville's inequality it ever reaches 1 / alpha with probability at most alpha. The means for which it has not are an
interval that holds the truth at all n at once, with probability 1 - alpha: a confidence sequence. So nobody has to say
beforehand how many pairs there will be, and looking costs nothing.

Lai 1976, "On confidence sequences", Annals of Statistics 4(2); Wang & Ramdas 2024, "Anytime-valid t-tests and
confidence sequences for Gaussian means with unknown variance", arXiv 2310.03722: the scale-invariant mixture.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "no difference found"]
_PRIOR_VARIANCE = 10.0
"""Of the effect size. Noise between seeds is small beside differences that matter, so effects of several standard
deviations are expected; with this a difference of seven is found in three or four pairs."""


@dataclass(frozen=True)
class Finding:
    """What the pairs say so far. ``low`` and ``high`` are infinite while nothing is known."""

    pairs: int
    mean: float
    low: float
    high: float
    verdict: Verdict
    is_decided: bool  # more pairs are not needed


def interval(differences: Sequence[float], alpha: float) -> tuple[float, float]:
    """The means that the differences do not contradict, at a level that holds for all numbers of pairs at once."""
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    growth = 1 + n * _PRIOR_VARIANCE
    limit = (math.sqrt(growth) / alpha) ** (2 / n)
    if limit >= growth:  # no difference, however large, would convince with so few
        return -math.inf, math.inf
    x = (limit - 1) / (1 - limit / growth)
    half = deviation * math.sqrt(x * (n - 1) / n)
    return mean - half, mean + half


def judge(gains: Sequence[float], *, alpha: float = 0.05, margin: float = 0.0) -> Finding:
    """The verdict on B from what it gained over A in each pair, as a share of A's result; above 0 is better.

    Args:
        margin: gains between -margin and margin do not matter: decided where the interval lies within.
    """
    low, high = interval(gains, alpha)
    mean = statistics.fmean(gains) if gains else math.nan
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "no difference found"
    is_decided = verdict != "no difference found" or (-margin <= low and high <= margin)
    return Finding(len(gains), mean, low, high, verdict, is_decided)
