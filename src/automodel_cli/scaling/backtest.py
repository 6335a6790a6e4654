"""A law put to the test: what the smaller budgets would have said of the runs of the largest.

Intervals by bootstrap contain the noise of runs, and take it for granted that losses have the form of the law. Whether
they have it beyond the budgets that the law was fitted to shows only in runs that it was not fitted to. So the law is
fitted once more without the largest budget, and the mean of log L minus its prediction's log, over the runs of that
budget, is compared with what noise and the uncertainty of the fit explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.scaling.bootstrap import Interval, noise_of_runs, resampled_laws
from automodel_cli.scaling.law import fit_law
from automodel_cli.scaling.points import Points

_DOUBT_LEVEL = 0.99  # a law that holds is doubted in one fit of a hundred
_ROUNDING = 1e-6  # of log loss: points that are exactly on a law have no noise to compare with


@dataclass(frozen=True)
class BackTest:
    """Runs of the largest budget against the law of the others.

    Attributes:
        budget: FLOPs of the runs that were left out; fitted_to: the largest budget that was left.
        runs: how many; inside: how many of them lie in their own interval of a run.
        off: mean of log L minus the prediction's log; the interval is that of a law that holds, around 0.
        is_failed: the mean lies where a law that holds puts it in one case of a hundred.
    """

    budget: float
    fitted_to: float
    runs: int
    inside: int
    off: Interval
    is_failed: bool


def back_test(points: Points, *, level: float, delta: float, resamples: int, seed: int) -> BackTest | None:
    """The test; None where there are fewer than three budgets, or too few runs in the smaller ones for a law."""
    if len(points.budgets) < 3:
        return None
    held_out = points.flops >= points.flops[points.of_budget(len(points.budgets) - 1)].min()
    rest, largest = points.only(~held_out), points.only(held_out)
    try:
        law = fit_law(rest, delta=delta)
    except DataError:
        return None
    laws = resampled_laws(rest, law, delta=delta, number=resamples, seed=seed)
    predicted = np.log(law.loss(largest.params, largest.tokens))
    n, d = largest.params[:, None], largest.tokens[:, None]
    noise = np.random.default_rng([seed, 4]).choice(noise_of_runs(rest, law), (len(largest), resamples))
    possible = np.log(laws.loss(n, d)) + noise - predicted[:, None]
    off = np.log(largest.loss) - predicted
    low, high = np.quantile(possible, [(1 - level) / 2, (1 + level) / 2], axis=1)
    mean, means = float(off.mean()), possible.mean(axis=0)
    doubt = Interval.of(mean, means, _DOUBT_LEVEL)
    return BackTest(
        float(points.budgets[-1]),
        float(points.budgets[-2]),
        len(largest),
        int(((low <= off) & (off <= high)).sum()),
        Interval.of(mean, means, level),
        abs(mean) > _ROUNDING and (mean < doubt.low or mean > doubt.high),
    )
