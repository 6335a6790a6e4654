"""The stateless shuffle: a bijection for every size, well mixed, and the same for ever."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.data.permutation import ALGORITHM, Permutation


@examples(200)
@given(size=st.integers(1, 5000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_element_comes_out_exactly_once(size: int, seed: int, epoch: int) -> None:
    order = Permutation(size, seed=seed)(np.arange(size), epoch)
    assert np.array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 10**4 - 1, 2**16, 2**16 + 1, 2**20 + 7])
def test_sizes_around_squares_and_powers(size: int) -> None:
    order = Permutation(size, seed=1)(np.arange(size), 0)
    assert np.bincount(order, minlength=size).tolist() == [1] * size


@pytest.mark.parametrize("size", [2**31 + 11, 10**12 + 39, 2**62])
def test_huge_sizes_stay_in_range_and_apart(size: int) -> None:
    positions = np.concatenate([np.arange(20_000), size - 1 - np.arange(20_000)])
    order = Permutation(size, seed=5)(positions, 3)
    assert order.min() >= 0
    assert order.max() < size
    assert len(np.unique(order)) == len(order)
    assert abs(order.astype(float).mean() / size - 0.5) < 0.02


def test_one_element_equals_its_place_in_a_bulk_call() -> None:
    shuffle = Permutation(1000, seed=9)
    epochs = np.arange(300) // 100
    together = shuffle(np.arange(300), epochs)
    assert [int(shuffle(np.array([k]), int(e))[0]) for k, e in zip(range(300), epochs, strict=True)] == (
        together.tolist()
    )


def test_seed_epoch_and_purpose_each_give_another_order() -> None:
    positions = np.arange(1000)
    orders = [
        Permutation(1000, seed=0)(positions, 0),
        Permutation(1000, seed=1)(positions, 0),
        Permutation(1000, seed=0)(positions, 1),
        Permutation(1000, seed=0, purpose="documents")(positions, 0),
    ]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10  # 1 expected by chance


def test_order_is_pinned() -> None:
    """A changed order would silently change what a resumed run reads; ALGORITHM must change with it."""
    assert ALGORITHM == "feistel-8/1"
    assert Permutation(10, seed=0)(np.arange(10), 0).tolist() == [4, 8, 1, 5, 0, 2, 3, 6, 9, 7]
    assert Permutation(1_000_003, seed=42)(np.arange(5), 2).tolist() == [
        769061,
        728717,
        815638,
        793545,
        234253,
    ]


def test_mixing() -> None:
    """Neighbours part, nothing correlates, and each block of the output draws evenly on the whole input."""
    size = 200_000
    order = Permutation(size, seed=3)(np.arange(size), 0)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.01
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.01
    assert abs(np.abs(np.diff(order)).mean() / size - 1 / 3) < 0.005
    counts, _, _ = np.histogram2d(np.arange(size), order, bins=20)
    expected = size / 400
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 361 + 5 * np.sqrt(2 * 361)  # 19 x 19 degrees of freedom


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 12])
def test_small_sizes_are_fair_over_seeds(size: int) -> None:
    counts = np.zeros((size, size))
    for seed in range(1500):
        counts[np.arange(size), Permutation(size, seed=seed)(np.arange(size), 0)] += 1
    expected = 1500 / size
    freedom = (size - 1) ** 2
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_all_orders_of_four_occur() -> None:
    seen = Counter(tuple(Permutation(4, seed=s)(np.arange(4), 0).tolist()) for s in range(1500))
    assert len(seen) == 24
    assert max(seen.values()) < 2 * 1500 / 24


def test_memory_does_not_depend_on_the_size() -> None:
    tracemalloc.start()
    Permutation(10**15, seed=0)(np.arange(1000), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
