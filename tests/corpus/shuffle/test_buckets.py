"""Buckets on disk: sorted by key whatever the memory, the number of buckets and the writers."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.shuffle import buckets as module
from automodel_cli.corpus.shuffle.bucket_reader import BucketReader
from automodel_cli.corpus.shuffle.buckets import (
    WORK_FILES,
    Buckets,
    BucketWriter,
    KeyRange,
    bucket_count,
)
from automodel_cli.corpus.shuffle.splitting import place_of, shuffle_keys
from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.files import remove_known

ROWS = [b"row %d " % k * (k % 11) + b"\n" for k in range(400)]
PLACES = place_of(np.arange(400) % 3, np.arange(400))


def fill(folder: Path, count: int, *, block: int = 64, writers: int = 1, rows: list[bytes] = ROWS) -> Buckets:
    shutil.rmtree(folder, ignore_errors=True)
    buckets = Buckets(folder, seed=7, count=count)
    buckets.create()
    files = [BucketWriter(buckets, str(k)) for k in range(writers)]
    for k in range(0, len(rows), block):
        some = rows[k : k + block]
        records = np.zeros(len(some), dtype=buckets.record)
        records["place"], records["length"] = PLACES[k : k + len(some)], [len(row) for row in some]
        files[k // block % writers].scatter(np.frombuffer(b"".join(some), np.uint8), records)
    return buckets


def read(buckets: Buckets, memory: int = 10**6, first_key: int = 0, **options: object) -> bytes:
    reader = BucketReader(buckets, memory, **options)  # type: ignore[arg-type]
    return b"".join(rows.data.tobytes() for rows in reader.read(first_key))


def expected(rows: list[bytes] = ROWS) -> bytes:
    return b"".join(rows[k] for k in np.argsort(shuffle_keys(7, PLACES[: len(rows)])))


@pytest.mark.parametrize(
    ("count", "block", "writers", "memory"),
    [
        (1, 400, 1, 10**6),
        (5, 7, 3, 10**6),
        (64, 50, 2, 10**6),
        (2, 33, 2, 3000),
        (1, 400, 1, 900),
        (3, 90, 1, 1),
    ],
)
def test_order_is_by_key_for_any_buckets_writers_and_memory(
    tmp_path: Path, count: int, block: int, writers: int, memory: int
) -> None:
    """With little memory the buckets are divided, several times over."""
    rows = ROWS if memory > 1 else ROWS[:40]
    assert read(fill(tmp_path / "b", count, block=block, writers=writers, rows=rows), memory) == expected(rows)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["plan.json"]


def test_a_row_larger_than_the_memory(tmp_path: Path) -> None:
    rows = [b"x" * 50_000 if k == 77 else row for k, row in enumerate(ROWS)]
    assert read(fill(tmp_path / "b", 2, rows=rows), 4000) == expected(rows)


def test_equal_places_keep_their_order_and_end(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "b", seed=7, count=1)
    buckets.create()
    records = np.zeros(50, dtype=buckets.record)
    records["length"] = 100
    data = np.repeat(np.arange(50, dtype=np.uint8), 100)
    BucketWriter(buckets).scatter(data, records)
    assert read(buckets, memory=500) == data.tobytes()


def test_going_on_from_any_key(tmp_path: Path) -> None:
    for memory in (10**6, 2000):
        groups = list(BucketReader(fill(tmp_path / "b", 3), memory).read())
        whole = b"".join(group.data.tobytes() for group in groups)
        for number in (1, len(groups) // 2, len(groups) - 1):
            rest = b"".join(group.data.tobytes() for group in groups[number:])
            if number and rest:
                assert read(fill(tmp_path / "b", 3), 10**6, groups[number].key) == rest
                assert whole.endswith(rest)


def test_kept_buckets_are_read_again_after_an_interrupted_division(tmp_path: Path) -> None:
    buckets = fill(tmp_path / "b", 2)
    before = sorted(path.name for path in buckets.folder.iterdir())
    reading = BucketReader(buckets, 2000, keep=True).read()
    next(reading)
    reading.close()
    assert len(list(buckets.folder.iterdir())) > len(before)  # parts of a bucket lie there
    assert read(Buckets.open(buckets.folder), 2000, keep=True) == expected()
    assert sorted(path.name for path in buckets.folder.iterdir()) == before


def test_dropped_places_are_left_out(tmp_path: Path) -> None:
    gone = PLACES[::3]
    kept = [k for k in np.argsort(shuffle_keys(7, PLACES)) if k % 3]
    for memory in (10**6, 2000):
        buckets = fill(tmp_path / "b", 4)
        parts = buckets.bucket_of(gone)
        found = read(buckets, memory, dropped=lambda number, parts=parts: gone[parts == number])
        assert found == b"".join(ROWS[k] for k in kept)


def test_what_is_not_whole_is_refused(tmp_path: Path) -> None:
    for memory in (10**6, 2000):
        buckets = fill(tmp_path / "b", 1)
        path = buckets.folder / "0000.0.rows"
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(DataError, match="not whole"):
            read(buckets, memory)
    with pytest.raises(DataError, match="no buckets"):
        Buckets.open(tmp_path)


def test_counts_and_records(tmp_path: Path) -> None:
    buckets = fill(tmp_path / "b", 5, writers=2)
    assert buckets.stored() == (400, sum(map(len, ROWS)))
    places = np.concatenate([records["place"] for records in buckets.iter_records(17)])
    assert np.array_equal(np.sort(places), np.sort(PLACES))
    buckets.sync()
    remove_known(buckets.folder, WORK_FILES)
    assert not buckets.folder.exists()


def test_ranges_of_keys_agree_with_parts() -> None:
    rng = np.random.default_rng(1)
    outer = [KeyRange()]
    for count in (1, 2, 7, 4096, 3):
        whole = outer[-1]
        ranges = whole.divided(count)
        assert ranges[0].low == whole.low
        assert sum(part.width for part in ranges) == whole.width
        offsets = (rng.random(1000) * whole.width).astype(np.float64)
        keys = np.array([whole.low + min(int(o), whole.width - 1) for o in offsets], dtype=np.uint64)
        edges = np.array([edge for part in ranges for edge in (part.low, part.low + part.width - 1)], np.uint64)
        keys = np.sort(np.concatenate((keys, edges)))
        numbers = whole.range_of(keys, count)
        assert (np.diff(numbers.astype(int)) >= 0).all()
        for key, number in zip(keys.tolist(), numbers.tolist(), strict=True):
            assert ranges[number].low <= key < ranges[number].low + ranges[number].width
        outer.append(ranges[count // 2])


def test_bucket_count() -> None:
    assert bucket_count(0, 0, 10**6) == 1
    assert bucket_count(400_000_000, 0, 50_000_000) == 16
    assert bucket_count(10**15, 0, 10**6) == module.MAX_BUCKETS


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    buckets = fill(tmp_path / "b", 1)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AutomodelError, match=r"no room left while writing .*b"):
        BucketWriter(buckets).scatter(np.ones(3, np.uint8), np.array([(1, 3)], dtype=buckets.record))


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"[]",
        b'{"seed": 1, "count": 0, "more_fields": []}',
        b'{"seed": 1, "count": 1000000000, "more_fields": []}',
        b'{"seed": 1, "count": "3", "more_fields": []}',
        b'{"seed": 1, "count": 3, "more_fields": [["ordinal", "O"]]}',
        b'{"seed": 1, "count": 3, "more_fields": 7}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_plan_that_lies_is_answered_in_two_lines(tmp_path: Path, plan: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(plan)
    with pytest.raises(DataError, match=r"plan\.json") as raised:
        Buckets.open(tmp_path)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("length", [2**63, 10**12])
def test_lengths_are_believed_only_after_the_rows(tmp_path: Path, length: int) -> None:
    for memory in (10**6, 2000):
        buckets = fill(tmp_path / "b", 1)
        path = buckets.folder / "0000.0.docs"
        records = np.fromfile(path, dtype=buckets.record)
        records["length"][3] = length
        records.tofile(path)
        with pytest.raises(DataError, match="not whole"):
            read(buckets, memory)


def test_only_files_of_buckets_are_removed(tmp_path: Path) -> None:
    buckets = fill(tmp_path / "b", 2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0000.0.rows").write_text("precious")
    (buckets.folder / "notes").write_text("mine")
    (buckets.folder / "digests").symlink_to(tmp_path / "elsewhere")
    remove_known(buckets.folder, WORK_FILES)
    assert sorted(path.name for path in buckets.folder.iterdir()) == ["digests", "notes"]
    assert (tmp_path / "elsewhere/0000.0.rows").read_text() == "precious"
