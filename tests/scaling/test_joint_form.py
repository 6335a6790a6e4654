"""The form in which the two terms act together: its fit against scipy's, and what its interval holds."""

from __future__ import annotations

import numpy as np
import pytest
from tests.effort import in_a_push
from tests.scaling.surfaces import BUDGETS, HOFFMANN, surface

from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.joint_form import GAMMAS, _Problem, _t_quantile, joint_form
from automodel_cli.scaling.law import HUBER_DELTA, fit_law, huber
from automodel_cli.scaling.points import Points, make_points

E, A, B, ALPHA, BETA, GAMMA = 1.22, 3355.0, 18186.0, 0.408, 0.431, 0.452
"""As Busbridge et al. 2025 found them, arXiv 2502.08606."""


def busbridge(params, tokens, gamma: float = GAMMA):
    """Their surface; with another gamma each term alone is what it was."""
    ratio = GAMMA / gamma
    terms = A**ratio / params ** (ALPHA * ratio) + B**ratio / tokens ** (BETA * ratio)
    return E + terms**gamma


def runs(gamma: float, noise: float = 0.0, seed: int = 0) -> Points:
    """Five sizes for each of four budgets, from a quarter of a size near the best to four times it."""
    budget = np.repeat(BUDGETS, 5)
    params = np.tile(np.geomspace(1 / 4, 4, 5), len(BUDGETS)) * 0.15 * budget**0.5
    tokens = budget / (6 * params)
    factor = np.exp(noise * np.random.default_rng(seed).standard_normal(params.size))
    return make_points(params, tokens, busbridge(params, tokens, gamma) * factor, budget)


def fitted(points: Points, resamples: int = 2):
    return joint_form(points, fit_law(points), delta=HUBER_DELTA, resamples=resamples, seed=0)


def test_with_gamma_1_it_is_the_law():
    points = surface(noise=0.003)
    law, (first, *_) = fit_law(points), fitted(points).fits
    assert first.gamma == 1.0
    assert huber(first.residuals, HUBER_DELTA).sum() <= law.objective * (1 + 1e-6)
    assert np.abs(np.log(points.loss / law.loss(points.params, points.tokens)) - first.residuals).max() < 1e-4
    assert first.numbers[3:] == pytest.approx([law.alpha, law.beta], abs=0.01)


def test_without_noise_it_finds_its_own_surface():
    points = runs(0.5)
    found = {one.gamma: one for one in fitted(points).fits}
    ratio = GAMMA / 0.5
    assert found[0.5].numbers[[0, 3, 4]] == pytest.approx([E, ALPHA * ratio, BETA * ratio], rel=0.01)
    assert np.abs(found[0.5].residuals).max() < 2e-5 < 5e-4 < np.abs(found[1.0].residuals).max()


@pytest.mark.parametrize("gamma", [0.8, 0.4])
def test_no_search_of_scipys_ends_lower(gamma):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    points = runs(0.6, noise=0.003)
    problem = _Problem.of(points)
    (ours,) = (one for one in fitted(points).fits if one.gamma == gamma)

    def residuals(numbers):
        return problem.residuals(np.asarray(numbers)[None], gamma)[0]

    theirs = optimize.least_squares(residuals, ours.numbers * 1.05, loss="huber", f_scale=HUBER_DELTA, x_scale="jac")
    assert huber(ours.residuals, HUBER_DELTA).sum() <= huber(theirs.fun, HUBER_DELTA).sum() * (1 + 1e-3)


def test_gammas_that_the_points_contradict_are_left_out():
    near_the_truth = fitted(runs(GAMMA, noise=0.002))
    assert 0.3 <= near_the_truth.gammas[0] <= GAMMA <= near_the_truth.gammas[1] < 1.0
    assert fitted(surface(noise=0.002)).gammas[1] == 1.0
    assert fitted(runs(GAMMA, noise=0.05)).gammas == (min(GAMMAS), 1.0)  # noise says nothing
    assert [_t_quantile(number) for number in (4, 14, 60)] == pytest.approx([4.604, 2.977, 2.660], rel=0.02)


@pytest.mark.parametrize("gamma", [1.0, 0.8, 0.6, GAMMA, 0.3] if in_a_push(0, of=1) else [1.0, GAMMA])
def test_it_holds_runs_whatever_gamma_is(gamma):
    """Runs of four times the largest budget; where gamma is below 1 the law's own interval misses them."""
    budget, repetitions = 4 * BUDGETS[-1], in_a_push(5, of=60)
    params = 0.15 * budget**0.5
    tokens = budget / (6 * params)
    plain, any_gamma = 0, 0
    for seed in range(repetitions):
        noise = 0.003 * np.random.default_rng([seed, 1]).standard_normal()
        loss = busbridge(params, tokens, gamma) * np.exp(noise)
        found = analyze(runs(gamma, 0.003, seed), resamples=in_a_push(40, of=300), seed=seed).predict(params, tokens)
        plain += found.run.low <= loss <= found.run.high
        any_gamma += found.run_any_gamma.low <= loss <= found.run_any_gamma.high
    assert any_gamma >= 0.8 * repetitions
    assert plain >= 0.75 * repetitions if gamma == 1 else plain <= 0.8 * repetitions
    assert plain <= 0.4 * repetitions if gamma < 0.7 else plain <= any_gamma


def test_the_law_s_own_intervals_do_not_know_of_it():
    found = analyze(surface(HOFFMANN, noise=0.003), resamples=40)
    before = found.law.loss(1e9, 2e10)
    one = found.predict(1e9, 2e10)
    assert one.law.value == one.run.value == before
    assert "joint_form" in vars(found) and one.run_any_gamma.low <= one.run_any_gamma.high
