"""The sequential test keeps its level however often one looks, and finds what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from automodel_cli.scaling.sequential import interval, judge

NOISE = 0.031e-2  # standard deviation of one run's bits per byte between seeds, relative (nanochat, 20 seeds)


def race(generator, gain, noise=NOISE, pairs=20, margin=0.0):
    gains = []
    for _ in range(pairs):
        gains.append(gain + noise * (generator.standard_normal() - generator.standard_normal()))
        found = judge(gains, margin=margin)
        if found.is_decided:
            break
    return found


def test_races_against_itself_give_at_most_5_percent_false_verdicts():
    generator = np.random.default_rng(0)
    races = [race(generator, 0.0) for _ in range(400)]
    assert sum(found.verdict != "no difference found" for found in races) <= 20


def test_a_difference_of_3_in_1000_is_found():
    generator = np.random.default_rng(1)
    races = [race(generator, 0.003) for _ in range(200)]
    assert sum(found.verdict == "better" for found in races) >= 0.9 * len(races)
    assert np.median([found.pairs for found in races]) <= 4
    assert race(generator, -0.003).verdict == "worse"


def test_the_interval_holds_the_truth_at_all_times_at_once():
    generator = np.random.default_rng(2)
    misses = 0
    for _ in range(300):
        gains = 0.7 + generator.standard_normal(25)
        spans = (interval(gains[:n], 0.1) for n in range(2, 26))
        misses += not all(low <= 0.7 <= high for low, high in spans)
    assert misses <= 30


def test_it_is_where_the_likelihood_ratio_reaches_one_over_alpha():
    gains = [0.3, -0.1, 0.5, 0.2, 0.45]
    low, high = interval(gains, 0.05)
    n, mean, deviation = 5, np.mean(gains), np.std(gains, ddof=1)
    for edge in (low, high):
        x = n * (mean - edge) ** 2 / ((n - 1) * deviation**2)
        growth = 1 + 10 * n
        assert growth**-0.5 * ((1 + x) / (1 + x / growth)) ** (n / 2) == pytest.approx(20)


def test_few_and_equal_pairs():
    assert judge([]).low == -math.inf and not judge([]).is_decided
    assert judge([0.1]).high == math.inf
    assert judge([0.0, 0.0, 0.0]).is_decided and judge([0.0, 0.0, 0.0]).verdict == "no difference found"
    assert judge([0.01, 0.01, 0.01]).verdict == "better"


def test_what_does_not_matter_ends_the_race():
    found = race(np.random.default_rng(3), 0.0, margin=0.002)
    assert found.verdict == "no difference found" and found.is_decided and found.pairs < 30
