"""Back-tests: a law that holds passes as often as it should, one that does not hold fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.effort import in_a_push
from tests.scaling.surfaces import surface

from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.law import HUBER_DELTA, fit_law
from automodel_cli.scaling.points import make_points

FASTER = "is wrong about the next"


def judged(points, *, resamples=60, seed=0):
    return analyze(points, resamples=resamples, seed=seed).back_test


def bent(points, by):
    """The losses of each budget lower by ``by`` times 0, 1, 4, 9: they fall ever faster."""
    return replace(points, loss=points.loss * np.exp(-by * points.group**2))


def test_it_is_the_mean_deviation_from_the_law_of_the_rest():
    points = surface(noise=0.003, seed=3)
    rest = points.group < 3
    arrays = (points.params, points.tokens, points.loss, points.flops)
    law = fit_law(make_points(*(array[rest] for array in arrays)), delta=HUBER_DELTA)
    off = np.log(points.loss / law.loss(points.params, points.tokens))[~rest]
    found = judged(points)
    assert found.off.value == pytest.approx(off.mean())
    assert (found.runs, found.budget, found.fitted_to) == (7, 3e19, 1e19)
    assert found.off.low < 0 < found.off.high


def test_exact_points_pass():
    found = judged(surface())
    assert not found.is_failed and abs(found.off.value) < 1e-6


def test_a_law_that_holds_passes():
    """About nine in ten means lie in their 90% interval, nine in ten runs in theirs, and one in a hundred fails."""
    repetitions = in_a_push(12, of=200)
    found = [judged(surface(sizes=5, noise=0.005, seed=seed), resamples=100) for seed in range(repetitions)]
    means = np.mean([one.off.low <= one.off.value <= one.off.high for one in found])
    runs = np.mean([one.inside / one.runs for one in found])
    assert min(means, runs) >= 0.9 - in_a_push(25, of=7) / 100, (means, runs)
    assert np.mean([one.is_failed for one in found]) <= in_a_push(17, of=5) / 100


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_losses_that_fall_ever_faster_fail(seed):
    points = surface(noise=0.003, seed=seed)
    assert not judged(points).is_failed
    found = analyze(bent(points, by=0.005), resamples=60)
    assert found.back_test.is_failed and found.back_test.off.value < -0.01
    assert any(FASTER in note for note in found.notes())


def test_too_few_budgets_or_runs():
    assert judged(surface(budgets=(1e18, 1e19))) is None
    assert judged(surface(budgets=(1e18, 3e18, 1e19), sizes=2)) is None
