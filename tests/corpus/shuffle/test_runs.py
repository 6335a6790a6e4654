"""Runs grouped by number: what was put in under a number comes out, in order, and damage is named."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.shuffle.runs import RunWriter, arrays, segments
from automodel_cli.errors import DataError

RECORD = np.dtype([("place", "<u8"), ("length", "<u8")])
COUNT = 7


def fill(folder: Path) -> dict[int, tuple[list[int], bytes]]:
    """A store of five runs, one of them empty, and for each number the places and rows it was given."""
    rng = np.random.default_rng(0)
    writer = RunWriter(folder, "x", COUNT)
    given: dict[int, tuple[list[int], bytes]] = {number: ([], b"") for number in range(COUNT)}
    for rows in (40, 1, 0, 3, 90):
        numbers = rng.integers(0, COUNT - 1, rows).astype(np.uint16)  # none has the last number
        records = np.zeros(rows, dtype=RECORD)
        records["place"], records["length"] = rng.integers(0, 2**63, rows), rng.integers(0, 9, rows)
        data = rng.integers(0, 256, int(records["length"].sum()), dtype=np.uint8)
        writer.add(numbers, records, data)
        at = 0
        for number, record in zip(numbers.tolist(), records, strict=True):
            places, content = given[number]
            row = data[at : at + int(record["length"])].tobytes()
            given[number] = ([*places, int(record["place"])], content + row)
            at += len(row)
    writer.close()
    return given


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    given = fill(tmp_path)
    for number, (places, content) in given.items():
        found = segments(tmp_path, "x", COUNT, number)
        assert arrays(found, RECORD)["place"].tolist() == places
        assert b"".join(s.rows.path.read_bytes()[s.rows.start : s.rows.stop] for s in found) == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.docs", "x.index", "x.rows"]


def test_records_without_rows(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "x", 3)
    writer.add(np.array([2, 0, 2], dtype=np.uint16), np.array([5, 6, 7], dtype="<u8"))
    writer.close()
    assert [arrays(segments(tmp_path, "x", 3, k), np.dtype("<u8")).tolist() for k in range(3)] == [[6], [], [5, 7]]


def test_a_store_without_runs(tmp_path: Path) -> None:
    RunWriter(tmp_path, "x", 3).close()
    assert segments(tmp_path, "x", 3, 1) == []


@pytest.mark.parametrize(("suffix", "cut"), [("docs", 5), ("rows", 1), ("index", 3)])
def test_a_damaged_store_is_named(tmp_path: Path, suffix: str, cut: int) -> None:
    fill(tmp_path)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"x\.(docs|index) is not whole"):
        for number in range(COUNT):
            segments(tmp_path, "x", COUNT, number)
    path.unlink()
    with pytest.raises(DataError, match="not whole"):
        segments(tmp_path, "x", COUNT, 0)
