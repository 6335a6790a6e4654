"""Pairs in buckets: all of them in small buckets, bounded work in large ones."""

import itertools

import numpy as np
import pytest

from automodel_cli.corpus.dedup.near import WINDOW, alike_in_buckets


class Compared:
    """Documents are alike if their places have the same remainder; counts what it was asked."""

    def __init__(self, remainders: int) -> None:
        self.remainders, self.count = remainders, 0
        self.pairs: set[tuple[int, int]] = set()

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        self.count += len(first)
        self.pairs |= set(zip(first.tolist(), second.tolist(), strict=True))
        return first % np.uint64(self.remainders) == second % np.uint64(self.remainders)


def found_in(keys: list[int], places: list[int], compared: Compared) -> set[tuple[int, int]]:
    pairs = alike_in_buckets(np.array(keys, dtype=np.uint64), np.array(places, dtype=np.uint64), compared)
    return {pair for first, second in pairs for pair in zip(first.tolist(), second.tolist(), strict=True)}


@pytest.mark.parametrize("remainders", [1, 2, 5])
def test_small_buckets_connect_what_all_pairs_would(remainders):
    rng = np.random.default_rng(remainders)
    sizes = [2, 3, WINDOW + 1, 7, 2, 20]
    keys = np.repeat(np.arange(len(sizes)), sizes).tolist()
    places = list(itertools.chain(*(sorted(rng.choice(1000, size, replace=False).tolist()) for size in sizes)))
    found = found_in(keys, places, Compared(remainders))
    members = list(zip(keys, places, strict=True))
    for key in range(len(sizes)):
        inside = [place for k, place in members if k == key]
        for remainder in range(remainders):
            same = [place for place in inside if place % remainders == remainder]
            reached = set(same[:1])
            for _ in same:
                reached |= {b for a, b in found if a in reached} | {a for a, b in found if b in reached}
            assert set(same) <= reached | (set() if same else {0})
    assert all(a % remainders == b % remainders for a, b in found)


def test_a_giant_bucket_of_equals_takes_one_comparison_each():
    compared = Compared(1)
    found = found_in([5] * 10_000, list(range(10_000)), compared)
    assert compared.count == 9_999 == len(found)


def test_a_giant_bucket_of_strangers_takes_bounded_work():
    compared = Compared(10_000)
    assert not found_in([5] * 10_000, list(range(10_000)), compared)
    assert compared.count <= (WINDOW + 1) * 10_000


def test_no_bucket_no_pairs():
    assert not found_in([], [], Compared(1))
    assert not found_in([1, 2, 3], [1, 2, 3], Compared(1))
