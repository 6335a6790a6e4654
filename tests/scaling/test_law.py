"""The fit of the law: exact without noise, no worse than another optimizer with it, deaf to outliers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.scaling.surfaces import HOFFMANN, STEEP, SYMMETRIC, surface

from automodel_cli.errors import DataError
from automodel_cli.scaling.law import HUBER_DELTA, fit_batch, fit_law, huber, non_negative_least_squares
from automodel_cli.scaling.points import make_points

TERMS = ("E", "A", "B", "alpha", "beta")


@pytest.mark.parametrize("law", [HOFFMANN, SYMMETRIC, STEEP], ids=["hoffmann", "symmetric", "steep"])
@pytest.mark.parametrize("center", [1.0, 3.0], ids=["centered", "off center"])
def test_exact_without_noise(law, center):
    found = fit_law(surface(law, center=center))
    for name in ("alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), abs=1e-6)
    for name in TERMS:
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4)


def test_the_minimum_is_that_of_another_optimizer():
    """scipy's L-BFGS in the parameters of Hoffmann et al. (log E, log A, log B), from the minimum that we found."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    points = surface(noise=0.005, seed=3)
    n, d, target = np.log(points.params), np.log(points.tokens), np.log(points.loss)
    found = fit_law(points)

    def objective(unknowns):
        e, a, b, alpha, beta = unknowns
        fitted = np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e)
        return huber(target - fitted, HUBER_DELTA).sum()

    start = np.array([*np.log([found.E, found.A, found.B]), found.alpha, found.beta])
    assert objective(start) == pytest.approx(found.objective, rel=1e-9)
    for shift in (0.0, 0.05, -0.05):
        other = optimize.minimize(objective, start + shift, method="L-BFGS-B", options={"maxiter": 2000})
        assert other.fun >= found.objective * (1 - 1e-6)


def test_all_starts_end_at_one_minimum():
    points = surface(noise=0.003, seed=1)
    starts = np.array([[0.1, 0.1], [0.8, 0.2], [0.3, 1.2]])
    laws = fit_batch(points, points.loss, np.ones((3, len(points))), starts, delta=HUBER_DELTA)
    assert np.ptp(laws.alpha) < 1e-3 and np.ptp(laws.beta) < 1e-3
    assert np.ptp(laws.objective) < 1e-6 * laws.objective[0]


def test_equal_points_give_equal_numbers():
    points = surface(noise=0.003)
    assert fit_law(points) == fit_law(points)


def test_outliers_hardly_pull():
    points = surface(noise=0.001)
    loss = points.loss.copy()
    loss[3] *= 1.3
    found = fit_law(points.with_loss(loss))
    assert found.alpha == pytest.approx(HOFFMANN.alpha, abs=0.02)
    least_squares = fit_law(points.with_loss(loss), delta=10.0)
    assert abs(least_squares.alpha - HOFFMANN.alpha) > 2 * abs(found.alpha - HOFFMANN.alpha)


def test_weights_count_points():
    """A point with weight two is a point that is there twice."""
    points = surface(noise=0.003)
    weights = np.ones(len(points))
    weights[5] = 2.0
    twice = np.append(np.arange(len(points)), 5)
    doubled = make_points(points.params[twice], points.tokens[twice], points.loss[twice])
    start = np.array([[0.3, 0.3]])
    a = fit_batch(points, points.loss, weights[None], start, delta=HUBER_DELTA)
    b = fit_batch(doubled, doubled.loss, np.ones((1, len(twice))), start, delta=HUBER_DELTA)
    assert a.alpha == pytest.approx(b.alpha, abs=1e-6) and a.objective == pytest.approx(b.objective, rel=1e-9)


def test_terms_are_not_negative():
    """Losses that rise with tokens: B would be negative, and is zero."""
    points = surface()
    found = fit_law(points.with_loss(1 + points.tokens / points.tokens.max()))
    assert min(found.E, found.A, found.B) == 0.0
    assert np.isfinite([getattr(found, name) for name in TERMS]).all()


def test_non_negative_least_squares_is_scipys():
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    generator = np.random.default_rng(0)
    design, target = generator.standard_normal((50, 8, 3)), generator.standard_normal((50, 8))
    weights = generator.integers(1, 4, (50, 8)).astype(float)
    found = non_negative_least_squares(design, target, weights)
    root = np.sqrt(weights)
    expected = [optimize.nnls(d * r[:, None], t * r)[0] for d, t, r in zip(design, target, root, strict=True)]
    assert np.allclose(found, expected, atol=1e-8)
    assert (found == 0).any() and (found > 0).any()


@pytest.mark.parametrize("sizes", [1, 5])
def test_too_little_to_fit(sizes):
    points = make_points(np.full(sizes, 1e8), np.geomspace(1e9, 1e10, sizes), np.full(sizes, 3.0))
    with pytest.raises(DataError, match="do not determine"):
        fit_law(points)


def test_losses_far_from_any_law_give_numbers(recwarn):
    """Trials that leave the law negative are refused in silence."""
    points = surface(noise=3.0, seed=2)
    found = fit_law(points)
    assert np.isfinite([getattr(found, name) for name in TERMS]).all()
    assert not recwarn.list
