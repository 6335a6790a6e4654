"""Thinned curves against all points, one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.metrics.downsample import shown_rows, thin


def brute_force(x, y, buckets, log_x):
    """The extremes of each part of the axis, by looking at every point."""
    place = math.log if log_x else float
    low, high = place(x[0]), place(x[-1])
    found: dict[int, list[tuple[float, float]]] = {}
    for one, value in zip(x, y, strict=True):
        number = min(int((place(one) - low) / (high - low) * buckets + 1e-9), buckets - 1)
        found.setdefault(number, []).append((one, value))
    return {number: (min(v for _, v in inside), max(v for _, v in inside)) for number, inside in found.items()}


@examples(80)
@given(st.integers(0, 2**32), st.integers(1, 40), st.booleans())
def test_every_pixel_keeps_its_lowest_and_highest(seed, buckets, log_x):
    random = np.random.default_rng(seed)
    x = np.cumsum(random.integers(1, 4, 500)).astype(float)
    y = random.normal(size=500)
    curve = thin(x, y, buckets, log_x=log_x)
    pairs = set(zip(x, y, strict=True))
    assert set(zip(curve.x, curve.y, strict=True)) <= pairs  # each point is one that was measured
    assert (np.diff(curve.x) > 0).all() and len(curve.x) <= 2 * buckets + 2
    expected, got = brute_force(x, y, buckets, log_x), brute_force(curve.x, curve.y, buckets, log_x)
    wrong = [number for number in expected if got.get(number) != expected[number]]
    assert len(wrong) <= 2 * (1 + buckets // 10)  # points on an edge, which rounding puts to one side or the other


def test_exactly_where_no_point_lies_on_an_edge():
    random = np.random.default_rng(1)
    x, y = np.arange(10_000) + 0.5, random.normal(size=10_000)
    x[0], x[-1] = 0, 10_000
    curve = thin(x, y, 100)
    assert brute_force(curve.x, curve.y, 100, False) == brute_force(x, y, 100, False)
    assert len(curve.mean_y) == 100
    np.testing.assert_allclose(curve.mean_y, y.reshape(100, 100).mean(axis=1))


def test_few_points_are_all_there_and_odd_ones_left_out():
    x, y = np.arange(5.0), np.array([1, math.nan, 3, math.inf, 5])
    curve = thin(x, y, 10)
    assert curve.x.tolist() == [0, 2, 4] and curve.y.tolist() == [1, 3, 5] and curve.mean_x is None
    assert thin(x, y, 10, log_x=True).x.tolist() == [2, 4]
    assert thin(np.empty(0), np.empty(0), 10).x.size == 0
    same = thin(np.full(100, 7.0), np.arange(100.0), 3)  # a clock that stands still
    assert same.y.min() == 0 and same.y.max() == 99


@pytest.mark.parametrize(
    ("low", "high", "rows"),
    [
        (None, None, (0, 10)),
        (3, 5, (2, 7)),
        (3.5, 3.6, (3, 5)),
        (-5, 100, (0, 10)),
        (50, 60, (9, 10)),
        (-9, -5, (0, 1)),
    ],
)
def test_the_rows_in_view_and_one_more_on_each_side(low, high, rows):
    found = shown_rows(np.arange(10.0), low, high)
    assert (found.start, found.stop) == rows
