"""Files of documents: quotas, sizes, hashes, and nothing left after an error."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.shuffle.document_files import (
    Division,
    DocumentWriter,
    chunk_name,
    names_of,
    val_name,
)
from automodel_cli.files import hash_file

ROWS = [b"x" * (k * 13 % 50) + b"\n" for k in range(100)]


def write(folder: Path, division: Division, piece: int) -> DocumentWriter:
    writer = DocumentWriter(folder, "d", division)
    for k in range(0, len(ROWS), piece):
        some = ROWS[k : k + piece]
        writer.feed(np.frombuffer(b"".join(some), np.uint8), np.array([len(row) for row in some]))
    return writer


@pytest.mark.parametrize("piece", [1, 7, 100])
@pytest.mark.parametrize(
    ("division", "counts"),
    [
        (Division(0, 100), [100]),
        (Division(10, 90, chunks=4), [10, 22, 23, 22, 23]),
        (Division(1, 99, chunks=99), [1] * 100),
        (Division(30, 70, chunk_bytes=10**6), [30, 70]),
    ],
)
def test_rows_in_files(tmp_path: Path, piece: int, division: Division, counts: list[int]) -> None:
    writer = write(tmp_path, division, piece)
    files = writer.finish()
    assert all(path.suffix == ".tmp" for path in tmp_path.iterdir())
    writer.publish()
    assert [file.documents for file in files] == counts and writer.documents == 100
    assert b"".join((tmp_path / file.name).read_bytes() for file in files) == b"".join(ROWS)
    for file in files:
        path = tmp_path / file.name
        assert (file.bytes, file.xxh3) == (path.stat().st_size, hash_file(path))
    assert files[0].split == ("val" if division.val_documents else "train")
    assert {file.split for file in files[1:]} <= {"train"}


@pytest.mark.parametrize("piece", [1, 7, 100])
@pytest.mark.parametrize("most", [1, 60, 500])
def test_chunks_by_bytes_are_as_full_as_they_can_be(tmp_path: Path, piece: int, most: int) -> None:
    writer = write(tmp_path, Division(0, 100, chunk_bytes=most), piece)
    files = writer.finish()
    expected: list[int] = []
    for row in ROWS:
        if expected and expected[-1] + len(row) <= most:
            expected[-1] += len(row)
        else:
            expected.append(len(row))
    assert [file.bytes for file in files] == expected


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    for step in ("feed", "finish", "publish"):
        writer = write(tmp_path, Division(10, 100, chunks=3), 9)
        if step != "feed":
            writer.finish()
        if step == "publish":
            writer.publish()
        writer.abandon()
        assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    pattern = names_of("a+b")
    for name in (chunk_name("a+b", 0), chunk_name("a+b", 123_456), val_name("a+b"), "a+b.val.jsonl.tmp"):
        assert pattern.fullmatch(name)
    for name in ("aab.val.jsonl", "a+b.chunk.1.jsonl", "a+b.chunk.00000.jsonl.bak", "x/a+b.val.jsonl"):
        assert not pattern.fullmatch(name)
    assert sorted([chunk_name("n", 10), chunk_name("n", 9)]) == [chunk_name("n", 9), chunk_name("n", 10)]
