"""Orders of mixtures against counting one sample after the other."""

from __future__ import annotations

import random

import numpy as np

from automodel_cli.data.mixture.order import MixtureOrder, Stage


def a_plan(chance: random.Random) -> list[Stage]:
    sources = chance.randint(1, 6)
    stages, first, before = [], 0, None
    for _ in range(chance.randint(1, 5)):
        weights = tuple(round(chance.random() * chance.randint(0, 3), 3) for _ in range(sources))
        weights = weights if sum(weights) else (1.0,) * sources
        ramp = before if before and chance.random() < 0.4 else None
        stages.append(Stage(first, weights, ramp))
        first, before = first + chance.randint(1, 3000), weights
    return stages if stages[-1].ramp_from is None else [*stages, Stage(first, stages[-1].weights)]


def test_a_position_is_what_counting_gives():
    chance = random.Random(1)
    for _ in range(60):
        stages = a_plan(chance)
        order = MixtureOrder(stages)
        total = stages[-1].first + 500
        sources, windows = order(np.arange(total))
        for source in range(len(stages[0].weights)):  # each source's windows once, in order
            mine = windows[sources == source]
            assert (mine == np.arange(len(mine))).all()
        samples = chance.randrange(total)
        assert (
            order.given(samples).tolist() == np.bincount(sources[:samples], minlength=len(stages[0].weights)).tolist()
        )
        picked = np.array([chance.randrange(total) for _ in range(20)])
        assert [part.tolist() for part in order(picked)] == [sources[picked].tolist(), windows[picked].tolist()]


def test_counts_are_within_a_window_of_the_share_in_each_stage():
    chance = random.Random(2)
    for _ in range(60):
        stages = [stage for stage in a_plan(chance) if stage.ramp_from is None]
        stages = [Stage(0, stages[0].weights), *stages[1:]]
        order = MixtureOrder(stages)
        for number, stage in enumerate(stages):
            end = stages[number + 1].first if number + 1 < len(stages) else stage.first + 700
            numbers = np.arange(stage.first, end)
            given = np.cumsum(order(numbers)[0][:, None] == np.arange(len(stage.weights)), axis=0)
            share = np.array(stage.weights) / sum(stage.weights)
            rounding = len(numbers) * 1e-4  # of weights that do not fit in a period
            assert (np.abs(given - np.arange(1, len(numbers) + 1)[:, None] * share) < 1 + rounding).all()


def test_a_ramp_goes_in_a_line():
    order = MixtureOrder([Stage(0, (1, 0)), Stage(1000, (0, 1), ramp_from=(1, 0)), Stage(101_000, (0, 1))])
    assert order.given(1000).tolist() == [1000, 0]
    for share in (0.25, 0.5, 0.75, 1.0):
        given = order.given(1000 + int(100_000 * share)) - order.given(1000)
        expected = 100_000 * (share - share**2 / 2)
        assert abs(given[0] - expected) < 100_000 / 64, (share, given)
    assert (order(np.arange(101_000, 101_100))[0] == 1).all()


def test_a_position_needs_no_walk_to_it():
    order = MixtureOrder([Stage(0, (0.7, 0.2, 0.1)), Stage(10**9, (0.1, 0.2, 0.7))])
    assert order.given(10**9).tolist() == [7 * 10**8, 2 * 10**8, 10**8]
    sources, windows = order(np.array([10**9 - 1, 10**9, 10**15]))
    assert order.given(10**15)[sources[2]] == windows[2]
