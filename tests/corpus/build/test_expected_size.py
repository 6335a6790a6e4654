"""Sizes before reading: exact for plain lines, near for the rest."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from automodel_cli.corpus.build.disk_space import ExpectedSize, expected_size
from automodel_cli.corpus.documents.listing import list_files
from automodel_cli.corpus.documents.units import ReadOptions

TEXTS = [f"text number {k} " * (k % 40) for k in range(3000)]
LINES = "".join(f'{{"text": "{text}"}}\n' for text in TEXTS).encode()


def size_of(path: Path, **options: object) -> ExpectedSize:
    return expected_size(list_files(str(path)).files, ReadOptions(**options))  # type: ignore[arg-type]


def test_plain_lines_are_exact(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.jsonl").write_bytes(LINES)
    assert size_of(tmp_path) == ExpectedSize(3 * len(LINES), True)


@pytest.mark.parametrize("level", [1, 19])
def test_compressed(tmp_path: Path, level: int) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES, min(level, 9)))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(LINES, level))
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        found = size_of(tmp_path / name)
        assert not found.exact and found.bytes == pytest.approx(len(LINES), rel=0.01)
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    assert size_of(tmp_path / "empty.jsonl.gz").bytes < 200


def test_many_frames(tmp_path: Path) -> None:
    """Of a file made of many frames only the first is looked at."""
    frames = [zstandard.compress(LINES[k : k + 5000]) for k in range(0, len(LINES), 5000)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert size_of(tmp_path / "a.jsonl.zst").bytes == pytest.approx(len(LINES), rel=0.3)


def test_parquet_counts_the_columns_that_are_read(tmp_path: Path) -> None:
    ids = [f"{k:064d}" for k in range(len(TEXTS))]
    table = pa.table({"text": TEXTS, "id": ids})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    text_bytes = sum(map(len, TEXTS))
    assert size_of(tmp_path / "a.parquet").bytes == pytest.approx(text_bytes, rel=0.1)
    more = size_of(tmp_path / "a.parquet", carried=("id",)).bytes
    assert more == pytest.approx(text_bytes + 64 * len(ids), rel=0.1)
