"""Gathering rows equals slicing and joining bytes, by Arrow too."""

import numpy as np
import pytest

from automodel_cli.corpus.shuffle import packed_rows
from automodel_cli.corpus.shuffle.packed_rows import Rows

WAYS = {"join": {}, "arrow": {"_MANY_ROWS": 0}, "arrow, int64": {"_MANY_ROWS": 0, "_INT32_BYTES": 1}}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys(), autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in request.param.items():
        monkeypatch.setattr(packed_rows, name, value)


def test_take_equals_slices() -> None:
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
    assert Rows(data[:0], np.zeros(0, np.int64)).take(np.zeros(0, np.int64)).tobytes() == b""
