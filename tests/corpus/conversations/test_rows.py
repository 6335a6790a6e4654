"""Rows of local files and of what ``datasets`` opens."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.corpus.conversations import rows
from automodel_cli.corpus.conversations.rows import FileRows, HubRows, open_rows
from automodel_cli.corpus.documents.units import BadRow
from automodel_cli.errors import DataError

ROWS = [{"id": k, "messages": [{"role": "user", "content": f"row {k}"}]} for k in range(20)]


def write(folder, kind):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=6)
    elif kind == "json":
        (folder / "rows.json").write_text(json.dumps(ROWS))
    elif kind == "jsonl.gz":
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        (folder / "rows.jsonl").write_text("\n" + lines.replace("\n", "\n\n", 1))
    return str(folder)


def read(source, chosen=None):
    chosen = np.ones(len(source), dtype=bool) if chosen is None else chosen
    found = list(source.rows(chosen))
    return [number for _, number, _ in found], [
        json.loads(row) if isinstance(row, bytes) else row for _, _, row in found
    ]


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "jsonl.gz"])
def test_files_of_every_kind(tmp_path, kind) -> None:
    source = open_rows(write(tmp_path, kind), None, "train")
    assert isinstance(source, FileRows) and len(source) == 20
    assert read(source) == (list(range(20)), ROWS)
    chosen = np.isin(np.arange(20), [3, 11, 19])
    assert read(source, chosen) == ([3, 11, 19], [ROWS[3], ROWS[11], ROWS[19]])
    assert source.describe()["files"] == 1 and source.identity() == FileRows(str(tmp_path)).identity()


def test_several_files_are_counted_through(tmp_path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({name: k}) + "\n" for k in range(3)))
    source = FileRows(f"{tmp_path}/*.jsonl")
    chosen = np.array([False, True, False, True, False, True])
    found = [(name, number, json.loads(row)) for name, number, row in source.rows(chosen)]
    assert found == [("a.jsonl", 1, {"a": 1}), ("b.jsonl", 0, {"b": 0}), ("b.jsonl", 2, {"b": 2})]


def test_a_line_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + "x" * 50 + '\n\n{"a": 2}\n' + "y" * 21)
    monkeypatch.setattr(rows, "MAX_DOCUMENT_BYTES", 20)
    source = FileRows(str(tmp_path))
    found = [row for _, _, row in source.rows(np.ones(len(source), dtype=bool))]
    assert [type(row) for row in found] == [bytes, BadRow, bytes, BadRow]
    assert json.loads(found[2]) == {"a": 2} and "longer than 20 bytes" in found[1].reason


def test_text_has_no_rows(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("Hello")
    with pytest.raises(DataError, match=r"a\.txt holds no rows"):
        open_rows(str(tmp_path / "a.txt"), None, "train")


def test_what_datasets_opens(tmp_path, monkeypatch) -> None:
    """A folder with splits, which ``load_dataset`` reads as it reads one of the Hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, some in (("train", ROWS), ("test", ROWS[:4])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"{split}.parquet")
    source = HubRows(str(folder), None, "train")
    assert len(source) == 20 and len(HubRows(str(folder), None, "test")) == 4
    assert read(source) == (list(range(20)), ROWS)
    assert read(source, np.arange(20) == 7) == ([7], [ROWS[7]])
    assert source.describe()["split"] == "train"
    with pytest.raises(DataError, match="cannot be opened"):
        HubRows(str(folder), None, "no_such_split")


def invalid_utf8() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"]).view(pa.string())}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("content", [b"", b"no parquet at all", invalid_utf8()])
def test_a_damaged_parquet_file_is_named(tmp_path, content) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read rows\.parquet"):
        read(open_rows(str(tmp_path / "rows.parquet"), None, "train"))
