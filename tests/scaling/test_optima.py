"""Optima: the closed form against a search, the cost of points, depths."""

from __future__ import annotations

import numpy as np
import pytest
from tests.scaling.surfaces import HOFFMANN, best_size, surface

from automodel_cli.scaling.law import Laws
from automodel_cli.scaling.optima import Cost, exponents_of, fit_cost, nearest_depth
from automodel_cli.scaling.optima import best_size as size_for
from automodel_cli.scaling.points import make_points


def test_equation_of_hoffmann():
    assert size_for(HOFFMANN, 1e21, Cost()) == pytest.approx(best_size(HOFFMANN, 1e21))
    found = exponents_of(HOFFMANN, Cost())
    assert found.a == pytest.approx(0.28 / 0.62) and found.a + found.b == pytest.approx(1)


@pytest.mark.parametrize("cost", [Cost(), Cost(8.0, 0.9), Cost(2.0, 1.1)], ids=str)
def test_the_closed_form_is_the_minimum(cost):
    sizes = np.geomspace(1e7, 1e11, 40_001)
    for budget in (1e19, 1e22):
        losses = HOFFMANN.loss(sizes, cost.tokens(budget, sizes))
        assert size_for(HOFFMANN, budget, cost) == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    ratio = size_for(HOFFMANN, 1e22, cost) / size_for(HOFFMANN, 1e21, cost)
    assert ratio == pytest.approx(10 ** exponents_of(HOFFMANN, cost).a)


def test_no_optimum_without_a_term():
    law = Laws(E=2.0, A=0.0, B=400.0, alpha=0.3, beta=0.3, objective=0.0)
    assert np.isnan(size_for(law, 1e20, Cost()))


def test_cost_of_points():
    points = surface()
    assert fit_cost(points) == Cost(spread=pytest.approx(0, abs=1e-9))
    flops = 9 * points.params**0.98 * points.tokens
    dear = make_points(points.params, points.tokens, points.loss, flops)
    found = fit_cost(dear)
    assert (found.factor, found.power) == (pytest.approx(9), pytest.approx(0.98))
    assert found.spread < 1e-9 and not found.is_poor
    assert fit_cost(make_points(points.params, points.tokens, points.loss, flops * np.resize([1, 2], 28))).is_poor


SIZES = [(6.0, 29.9e6), (12.0, 123.6e6), (20.0, 457.6e6)]


@pytest.mark.parametrize(
    ("params", "depth"),
    [(29.9e6, 6), (130e6, 12), (60e6, 8), (457.6e6, 20), (800e6, 25), (10e6, 4), (1.0, 1)],
)
def test_nearest_depth(params, depth):
    assert nearest_depth(params, SIZES) == depth


def test_no_depth():
    assert nearest_depth(1e8, []) is None
    assert nearest_depth(1e8, SIZES[:1]) is None
    assert nearest_depth(float("nan"), SIZES) is None
