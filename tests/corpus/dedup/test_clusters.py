"""Union-find for many pairs at a time, against one pair at a time."""

import numpy as np
import pytest
from tests.corpus.dedup.planted import clusters_of

from automodel_cli.corpus.dedup.clusters import Numbering, roots, unite


@pytest.mark.parametrize("seed", range(20))
def test_clusters_are_those_of_one_pair_at_a_time(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 400))
    pairs = rng.integers(0, count, (int(rng.integers(0, 2 * count)), 2))
    parents = np.arange(count)
    for some in np.array_split(pairs, 3):
        unite(parents, some[:, 0], some[:, 1])
    assert roots(parents, np.arange(count)).tolist() == clusters_of(count, pairs.tolist())
    assert (parents <= np.arange(count)).all()


@pytest.mark.parametrize("order", ["up", "down", "random", "star"])
def test_a_long_chain_is_one_cluster(order):
    count = 20_000
    first, second = np.arange(count - 1), np.arange(1, count)
    if order == "down":
        first, second = second[::-1], first[::-1]
    elif order == "random":
        shuffled = np.random.default_rng(0).permutation(count - 1)
        first, second = first[shuffled], second[shuffled]
    elif order == "star":
        second = np.full(count - 1, count - 1)
    parents = np.arange(count)
    unite(parents, first, second)
    assert not roots(parents, np.arange(count)).any()


def test_numbers_and_places_are_inverse():
    numbering = Numbering(np.array([0, 3, 3, 10]))
    numbers = np.arange(10)
    places = numbering.places(numbers)
    assert [int(place) >> 40 for place in places] == [0] * 3 + [2] * 7
    assert numbering.numbers(places).tolist() == numbers.tolist()
