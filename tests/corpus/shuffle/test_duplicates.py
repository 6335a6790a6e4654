"""Duplicates against a plain Python set, with little memory, skew, and rows that arrive in any order."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.shuffle.bucket_reader import BucketReader
from automodel_cli.corpus.shuffle.buckets import Buckets, BucketWriter
from automodel_cli.corpus.shuffle.duplicates import Duplicates, first_of_each
from automodel_cli.corpus.shuffle.rows import digests_of
from automodel_cli.corpus.shuffle.scatter import DIGEST_FIELDS
from automodel_cli.corpus.shuffle.splitting import place_of, shuffle_keys

RNG = np.random.default_rng(3)
# Many texts once, some twice or more, and one that half of the rows have.
TEXTS = ["the same" if RNG.random() < 0.5 else f"text {RNG.integers(0, 700)}" for _ in range(2000)]
PLACES = place_of(np.arange(2000) // 512, np.arange(2000) % 512)


def first_seen() -> list[int]:
    seen: set[str] = set()
    return [k for k, text in enumerate(TEXTS) if not (text in seen or seen.add(text))]  # type: ignore[func-returns-value]


def fill(folder: Path, count: int) -> Buckets:
    buckets = Buckets(folder, seed=1, count=count, more_fields=DIGEST_FIELDS)
    buckets.create()
    order = RNG.permutation(2000)  # workers hand in their rows in any order
    for k in range(0, 2000, 300):
        some = order[k : k + 300]
        rows = [TEXTS[i].encode() + b"\n" for i in some]
        digests = digests_of([TEXTS[i] for i in some])
        records = np.zeros(len(some), dtype=buckets.record)
        records["place"], records["length"] = PLACES[some], [len(row) for row in rows]
        records["low"], records["high"] = digests["low"], digests["high"]
        BucketWriter(buckets, str(k % 2)).scatter(np.frombuffer(b"".join(rows), np.uint8), records)
    return buckets


@pytest.mark.parametrize(("count", "memory"), [(1, 10**7), (7, 10**5), (3, 20_000), (2, 4000)])
def test_what_stays_is_the_first_of_each_text(tmp_path: Path, count: int, memory: int) -> None:
    buckets = fill(tmp_path / "b", count)
    duplicates = Duplicates(buckets, memory)
    told: list[int] = []
    expected = first_seen()
    assert duplicates.find(told.append) == 2000 - len(expected) == duplicates.count
    assert told[-1] == 2000
    kept = sorted(expected, key=lambda k: shuffle_keys(1, PLACES[k : k + 1])[0])
    reader = BucketReader(buckets, 10**6, dropped=duplicates.dropped)
    found = b"".join(rows.data.tobytes() for rows in reader.read())
    assert found.decode().splitlines() == [TEXTS[k] for k in kept]


def test_counts_below_a_key(tmp_path: Path) -> None:
    buckets = fill(tmp_path / "b", 5)
    duplicates = Duplicates(buckets, 50_000)
    duplicates.find()
    keys = shuffle_keys(1, PLACES)
    kept = np.zeros(2000, dtype=bool)
    kept[first_seen()] = True
    for key in (0, 1 << 61, 3 << 62, (1 << 64) - 1):
        assert buckets.count_below(key) == (keys < np.uint64(key)).sum()
        assert duplicates.count_below(key) == (keys[~kept] < np.uint64(key)).sum()


def test_nothing_to_find(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "b", seed=1, count=3, more_fields=DIGEST_FIELDS)
    buckets.create()
    assert Duplicates(buckets, 1000).find() == 0


def test_hashes_that_agree_in_half_are_different() -> None:
    records = np.zeros(3, dtype=[("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
    records["high"], records["low"], records["place"] = 5, [1, 2, 1], [9, 8, 7]
    kept, dropped = first_of_each(records)
    assert sorted(kept["place"].tolist()) == [7, 8] and dropped.tolist() == [9]
