"""Periods of mixtures: quotas are the weights, and no source is a window off its share."""

from __future__ import annotations

import random

import numpy as np
import pytest

from automodel_cli.data.mixture.pattern import LONGEST_PERIOD, pattern, quotas, rounded


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([1 / 3, 1 / 3, 1 / 3], [1, 1, 1]),
        ([3, 0, 1], [3, 0, 1]),
        ([0.5], [1]),
        ([0.9999, 0.0001], [9999, 1]),
    ],
)
def test_simple_weights_are_exact(weights, found):
    assert quotas(weights) == found


def test_odd_weights_are_the_nearest_and_none_is_lost():
    found = quotas([1e-6] * 5 + [1.0, 0.0])
    assert found == [1] * 5 + [LONGEST_PERIOD - 5, 0]
    assert rounded([2.0**0.5, 1.0], 10) == [6, 4]
    assert rounded([1e308, 1e308, 1e-300], 11) == [5, 5, 1]


def test_no_source_is_ever_a_window_off_its_share():
    chance = random.Random(0)
    for _ in range(100):
        weights = [chance.random() ** 3 for _ in range(chance.randint(1, 12))]
        quota = rounded(weights, chance.randint(12, 500))
        chosen = pattern(quota)
        given = np.cumsum(chosen[:, None] == np.arange(len(quota)), axis=0)
        share = np.arange(1, len(chosen) + 1)[:, None] * np.array(quota) / len(chosen)
        assert np.abs(given - share).max() < 1 and given[-1].tolist() == quota


def test_the_order_of_a_period_is_what_it_was():
    """Runs resume in it: another one would be another ``ALGORITHM``."""
    assert pattern([7, 2, 1]).tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]
    assert pattern([3, 0, 1, 5, 5]).tolist() == [3, 4, 0, 3, 4, 3, 4, 0, 3, 4, 0, 2, 3, 4]
