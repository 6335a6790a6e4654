"""Gathering rows equals slicing and joining bytes."""

import numpy as np
import pytest

from automodel_cli.corpus import gather
from automodel_cli.corpus.gather import Rows


@pytest.mark.parametrize("most_int32", [2**31 - 1, 10])
def test_take_equals_slices(monkeypatch: pytest.MonkeyPatch, most_int32: int) -> None:
    monkeypatch.setattr(gather, "_INT32_BYTES", most_int32)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 200)
    data = rng.integers(0, 256, int(lengths.sum()), dtype=np.uint8)
    stops = np.cumsum(lengths)
    rows = [data[stop - length : stop].tobytes() for stop, length in zip(stops, lengths, strict=True)]
    for order in (rng.permutation(200), rng.integers(0, 200, 7), np.zeros(0, np.int64), np.array([3])):
        expected = b"".join(rows[k] for k in order.tolist())
        assert Rows(data, lengths).take(order).tobytes() == expected


def test_bytes_after_the_last_row_and_empty_rows() -> None:
    data = np.frombuffer(b"abcd", dtype=np.uint8)
    assert Rows(data, np.array([1, 0, 2])).take(np.array([2, 1, 0])).tobytes() == b"bca"
    assert Rows(data[:0], np.array([0, 0])).take(np.array([1])).tobytes() == b""
