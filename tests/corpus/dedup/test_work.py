"""Temporary files: grouped records come back, files appear whole, damage is said."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.dedup.work import (
    WORK_FILES,
    GroupedFile,
    GroupedWriter,
    load,
    of_pass,
    partition_of,
    published,
)
from automodel_cli.errors import DataError

RECORD = np.dtype([("key", "<u8"), ("index", "<u4")])


def write(path: Path, records: np.ndarray, numbers: np.ndarray, groups: int, run_bytes: int) -> GroupedFile:
    with published(path) as handle:
        writer = GroupedWriter(handle, RECORD, groups, run_bytes)
        for first in range(0, len(records), 10):
            writer.add(records[first : first + 10], numbers[first : first + 10])
        writer.finish()
    return GroupedFile(path, RECORD, groups)


@pytest.mark.parametrize("run_bytes", [1, 300, 1 << 20])
def test_records_come_back_by_group_in_order(tmp_path, run_bytes):
    rng = np.random.default_rng(0)
    records = np.zeros(105, dtype=RECORD)
    records["key"], records["index"] = rng.integers(0, 2**63, 105), np.arange(105)
    numbers = rng.integers(0, 6, 105)
    numbers[numbers == 4] = 3
    found = write(tmp_path / "f", records, numbers, 6, run_bytes)
    for group in range(6):
        assert found.read(group).tolist() == records[numbers == group].tolist()
        assert found.size(group) == (numbers == group).sum()


def test_no_records_no_groups(tmp_path):
    found = write(tmp_path / "f", np.zeros(0, dtype=RECORD), np.zeros(0, dtype=int), 3, 100)
    assert [found.size(group) for group in range(3)] == [0, 0, 0]
    assert len(found.read(2)) == 0


def test_a_file_that_is_not_whole_is_said(tmp_path):
    path = tmp_path / "f"
    write(path, np.zeros(50, dtype=RECORD), np.zeros(50, dtype=int), 3, 100)
    whole = path.read_bytes()
    for data in (whole[:-1], whole[5:], b"", whole + b"\0" * 8, b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not whole"):
            GroupedFile(path, RECORD, 3)
    with pytest.raises(DataError, match="cannot read"):
        GroupedFile(tmp_path / "missing", RECORD, 3)
    path.write_bytes(b"12345678")
    with pytest.raises(DataError, match="not whole"):
        load(path, "<u4", count=3)
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "missing", "<u4")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "read" / "00000.json"
    with pytest.raises(ValueError), published(path) as handle:
        handle.write(b"half")
        assert not path.exists()
        (left,) = path.parent.iterdir()
        assert WORK_FILES.fullmatch(f"read/{left.name}")
        raise ValueError
    assert not list(path.parent.iterdir())
    with published(path) as handle:
        handle.write(b"all")
    assert path.read_bytes() == b"all" and WORK_FILES.fullmatch("read/00000.json")


def test_partitions_and_passes_divide_all_keys():
    keys = np.random.default_rng(0).integers(0, 2**64, 10_000, dtype=np.uint64)
    numbers = partition_of(keys, 7)
    assert set(numbers.tolist()) == set(range(7))
    assert sum(of_pass(keys, number, 3).astype(int) for number in range(3)).tolist() == [1] * len(keys)
    edges = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert partition_of(edges, 5).tolist() == [0, 4] and of_pass(edges, 2, 3).tolist() == [False, True]
