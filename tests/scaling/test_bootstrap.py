"""Intervals: the same for the same seed, and holding the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from tests.effort import in_a_push
from tests.scaling.surfaces import BUDGETS, HOFFMANN, surface

from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.bootstrap import Interval, resample_counts, resampled_parabolas
from automodel_cli.scaling.parabolas import fit_parabolas, size_law


def test_resamples_keep_every_budget():
    points = surface()
    counts = resample_counts(points, 50, seed=1)
    for number in range(len(BUDGETS)):
        assert (counts[:, points.of_budget(number)].sum(axis=1) == 7).all()
    assert (counts == resample_counts(points, 50, seed=1)).all()
    assert (counts != resample_counts(points, 50, seed=2)).any()


def test_equal_seeds_give_equal_intervals():
    points = surface(noise=0.003)
    first, second = (analyze(points, resamples=20, seed=5) for _ in range(2))
    assert first.term("alpha") == second.term("alpha")
    assert first.parabola_exponent() == second.parabola_exponent()
    assert first.predict(1e9, 1e11) == second.predict(1e9, 1e11)
    assert first.term("alpha") != analyze(points, resamples=20, seed=6).term("alpha")


def test_without_noise_intervals_are_points():
    found = analyze(surface(), resamples=20)
    for name in ("alpha", "beta", "E"):
        interval = found.term(name)
        assert interval.high - interval.low < 1e-4
        assert interval.value == pytest.approx(getattr(HOFFMANN, name), abs=1e-6)


def test_interval_of_values_that_are_mostly_missing():
    assert np.isnan(Interval.of(1.0, np.array([1.0, np.nan, np.nan]), 0.9).low)
    assert Interval.of(1.0, np.linspace(0, 1, 101), 0.9) == Interval(1.0, pytest.approx(0.05), pytest.approx(0.95))


def test_parabolas_of_three_points_have_no_residuals():
    points = surface(sizes=3)
    found = resampled_parabolas(points, fit_parabolas(points), number=5, seed=0)
    assert np.ptp(found.log_params, axis=0) == pytest.approx(0, abs=1e-9)


def test_coverage():
    """Of 90% intervals about nine in ten hold the truth, and they are as wide as estimates scatter.

    For parabolas the truth is what they would say without noise: their bias is another matter.
    """
    repetitions, resamples = in_a_push(15, of=150), in_a_push(80, of=300)
    exact = size_law(fit_parabolas(surface())).exponent
    truths = {
        "alpha": HOFFMANN.alpha,
        "beta": HOFFMANN.beta,
        "E": HOFFMANN.E,
        "a": 0.28 / 0.62,
        "line": exact,
    }
    found: dict[str, list[Interval]] = {name: [] for name in truths}
    runs = 0
    for seed in range(repetitions):
        fitted = analyze(surface(noise=0.003, seed=seed), resamples=resamples, seed=seed)
        for name in ("alpha", "beta", "E"):
            found[name].append(fitted.term(name))
        found["a"].append(fitted.exponent("a"))
        found["line"].append(fitted.parabola_exponent())
        held_out = surface(budgets=(1.2e20,), sizes=1, span=1.0, noise=0.003, seed=1000 + seed)
        predicted = fitted.predict(held_out.params[0], held_out.tokens[0]).run
        runs += predicted.low <= held_out.loss[0] <= predicted.high
    shares = {"runs": runs / repetitions}
    for name, truth in truths.items():
        shares[name] = float(np.mean([one.low <= truth <= one.high for one in found[name]]))
        width = np.mean([one.high - one.low for one in found[name]])
        assert 0.6 < width / (2 * 1.645 * np.std([one.value for one in found[name]])) < 1.8, name
    assert min(shares.values()) >= 0.9 - in_a_push(25, of=12) / 100, shares
