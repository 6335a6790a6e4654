"""Parabolas: vertices of real parabolas, flags, the line through vertices, and the bias that they are known for."""

from __future__ import annotations

import numpy as np
import pytest
from tests.scaling.surfaces import BUDGETS, STEEP, SYMMETRIC, best_size, surface

from automodel_cli.scaling.analysis import parabola_bias
from automodel_cli.scaling.law import fit_law
from automodel_cli.scaling.optima import Cost
from automodel_cli.scaling.parabolas import fit_parabolas, fit_power_law, size_law
from automodel_cli.scaling.points import Points, make_points


def real_parabolas(vertices: list[float], curvature: float = 0.05, sizes: int = 5) -> Points:
    """One budget for each vertex, sizes from 1e7 to 1e9."""
    params = np.tile(np.geomspace(1e7, 1e9, sizes), len(vertices))
    budgets = np.repeat(np.geomspace(1e18, 1e19, len(vertices)), sizes)
    loss = 3 + curvature * (np.log(params) - np.repeat(np.log(vertices), sizes)) ** 2
    return make_points(params, budgets / (6 * params), loss, budgets)


def test_vertex_of_a_parabola():
    found = fit_parabolas(real_parabolas([5e7, 2e8]))
    assert [one.flag for one in found] == ["ok", "ok"]
    assert [one.params for one in found] == pytest.approx([5e7, 2e8], rel=1e-9)
    assert [one.loss for one in found] == pytest.approx([3, 3])
    assert found[0].at(np.array([5e7 * np.e])) == pytest.approx(3.05)
    assert size_law(found).exponent == pytest.approx(np.log(4) / np.log(10))


@pytest.mark.parametrize("vertex", [2e6, 5e9])
def test_vertex_outside_the_sizes_is_an_edge(vertex):
    edge, good = fit_parabolas(real_parabolas([vertex, 1e8]))
    assert (edge.flag, good.flag) == ("edge", "ok")
    assert edge.params == pytest.approx(vertex, rel=1e-6)
    assert np.isnan(size_law([edge, good]).exponent)  # one vertex is no line


def test_inverted():
    points = real_parabolas([1e8, 1e8], curvature=-0.05)
    one, _ = fit_parabolas(points)
    assert one.flag == "inverted" and np.isnan(one.params)


def test_few_sizes():
    points = real_parabolas([1e8, 1e8], sizes=2)
    assert [one.flag for one in fit_parabolas(points)] == ["few sizes"] * 2


def test_power_law_leaves_gaps_out():
    budgets = np.array([1e18, 1e19, 1e20])
    values = np.stack([np.log(7 * budgets**0.5), [np.nan, 2.0, np.nan]])
    found = fit_power_law(budgets, values)
    assert found.exponent[0] == pytest.approx(0.5) and np.exp(found.level[0]) == pytest.approx(7)
    assert found.at(1e20)[0] == pytest.approx(7e10)
    assert np.isnan(found.exponent[1])


def test_exact_on_a_symmetric_centered_grid():
    points = surface(SYMMETRIC)
    found = fit_parabolas(points)
    assert [one.params for one in found] == pytest.approx([best_size(SYMMETRIC, c) for c in BUDGETS], rel=1e-6)
    bias = parabola_bias(points, SYMMETRIC, Cost())
    assert bias.exponent == pytest.approx(0.5, abs=1e-6) and not bias.is_notable


@pytest.mark.parametrize(("center", "span"), [(1 / 3, 4.0), (1.0, 8.0)], ids=["off center", "wide"])
def test_sizes_are_biased_where_exponents_differ(center, span):
    """The finding of arXiv 2603.22339, without any noise; the law's own fit is exact on the same points."""
    points = surface(STEEP, center=center, span=span)
    bias = parabola_bias(points, STEEP, Cost())
    assert bias.is_notable and (np.abs(bias.size_ratios - 1) > 0.1).all()
    assert bias.exponent == pytest.approx(bias.law_exponent)  # the same error at each budget
    assert fit_law(points).alpha == pytest.approx(STEEP.alpha, abs=1e-6)


def test_the_exponent_is_biased_where_the_center_drifts():
    drifting = [surface(STEEP, budgets=(c,), center=f) for c, f in zip(BUDGETS, (1, 1.4, 2, 3), strict=True)]
    names = ("params", "tokens", "loss", "flops")
    points = make_points(*(np.concatenate([getattr(one, name) for one in drifting]) for name in names))
    bias = parabola_bias(points, STEEP, Cost())
    assert bias.is_notable and abs(bias.exponent - bias.law_exponent) > 0.01
    assert fit_law(points).beta == pytest.approx(STEEP.beta, abs=1e-6)
