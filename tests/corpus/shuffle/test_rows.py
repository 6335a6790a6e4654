"""Rows as they are moved: bytes of lines untouched, other kinds as JSON, numbers that do not depend on the cutting."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader, count_rows, digests_of
from automodel_cli.corpus.shuffle.scatter import numbered
from automodel_cli.corpus.shuffle.splitting import document_places, place_of

LINES = [
    b'{"text": "one", "id": 1}',
    b'  {"id":2,   "text":"zwei \xc3\xa9\\u00e9"}  \r',
    b"",
    b"   \t",
    b'{"text": "tab\\tquote\\""}\r',
    b"[1, 2]",
    b'{"cut": ',
    b'{"text": ""}',
    b'{"text": "last"}',
]
GOOD = [0, 1, 4, 7, 8]


def read(source: FileSource, options: RowOptions, chunk: int = 1) -> tuple[dict[int, bytes], list[str]]:
    """Every row by its place, and the bad ones, in order."""
    rows: dict[int, bytes] = {}
    bad: list[str] = []
    units = numbered(source.units(None, chunk), lambda unit: count_rows(unit, options.read))
    for unit in units:
        block = RowReader(options)(unit)
        assert block.rows == count_rows(unit, options.read) or unit.kind in ("files", "piece", "bad")
        stops = np.cumsum(block.lengths)
        places = document_places(unit, unit.first_row, block.numbers)
        assert places is not None and len(places) == len(stops)
        for place, stop, length in zip(places.tolist(), stops, block.lengths, strict=True):
            rows[place] = block.data[stop - length : stop].tobytes()
        bad += [f"{unit.first_row + row.row}: {row.reason}" for row in block.bad]
    return rows, bad


def open_files(path: Path, monkeypatch: pytest.MonkeyPatch, *, unit_bytes: int, **options: object) -> FileSource:
    monkeypatch.setattr("automodel_cli.corpus.documents.source.BYTES_PER_DOCUMENT", unit_bytes)
    return FileSource(str(path), ReadOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("unit_bytes", [1, 40, 10**6])
@pytest.mark.parametrize("form", ["plain", "bom", "no newline at the end", "gz"])
def test_lines_are_moved_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int, form: str
) -> None:
    content = b"\n".join(LINES) + (b"" if form == "no newline at the end" else b"\n")
    path = tmp_path / ("rows.jsonl.gz" if form == "gz" else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if form == "gz" else (b"\xef\xbb\xbf" * (form == "bom") + content))
    source = open_files(path, monkeypatch, unit_bytes=unit_bytes)
    rows, bad = read(source, RowOptions(source.options))
    assert rows == {k: LINES[k] + b"\n" for k in GOOD}
    assert bad == ["5: not a JSON object", "6: not a JSON object"]
    checked, bad = read(source, RowOptions(source.options, check=True))
    assert checked == rows
    assert bad == ["5: row is a list, not an object", "6: malformed JSON"]


def test_check_leaves_out_rows_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": null}\n{"a": "b"}\n{"text": "\\ud800"}\n{"text": "x"}\n{broken}\n')
    source = open_files(path, monkeypatch, unit_bytes=10**6)
    assert list(read(source, RowOptions(source.options))[0]) == [0, 1, 2, 3, 4]
    rows, bad = read(source, RowOptions(source.options, check=True))
    assert list(rows) == [3] and len(bad) == 4


def test_digests_are_those_of_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    source = open_files(path, monkeypatch, unit_bytes=10**6)
    (unit,) = source.units(None, 1)
    block = RowReader(RowOptions(source.options, digest=True))(unit)
    texts = [json.loads(LINES[k])["text"] for k in GOOD]
    assert block.digests is not None
    assert block.digests.tobytes() == b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    assert len(digests_of([])) == 0


@pytest.mark.parametrize("unit_bytes", [1, 10**6])
@pytest.mark.parametrize(("document", "expected"), [
    ("line", {0: "a", 2: 'b"\\é', 3: "c"}),
    ("\n\n", {0: "a", 1: 'b"\\é\nc\n'}),
    ("file", {0: 'a\n\nb"\\é\nc\n'}),
])  # fmt: skip
def test_texts_become_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int, document: str, expected: dict[int, str]
) -> None:
    (tmp_path / "x.txt").write_text('a\n\nb"\\é\nc\n')
    source = open_files(tmp_path / "x.txt", monkeypatch, unit_bytes=unit_bytes, document=document, text_key="content")
    rows, _ = read(source, RowOptions(source.options))
    assert {place: json.loads(row) for place, row in rows.items()} == {
        place: {"content": text} for place, text in expected.items()
    }
    assert all(row.endswith(b"}\n") and row.count(b"\n") == 1 for row in rows.values())


def test_many_small_files_are_a_document_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(5):
        (tmp_path / f"{k}.txt").write_bytes(b"\xff" if k == 1 else b"" if k == 3 else b"text %d" % k)
    for unit_bytes in (1, 10**6):
        source = open_files(tmp_path, monkeypatch, unit_bytes=unit_bytes)
        rows, bad = read(source, RowOptions(source.options))
        assert rows == {int(place_of(k, 0)): b'{"text": "text %d"}\n' % k for k in (0, 2, 4)}
        assert len(bad) == 1


def test_parquet_with_and_without_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "id": list(range(60)),
            "text": [None if k == 7 else f"text é {k}" for k in range(60)],
            "score": [float("nan") if k == 3 else k / 2 for k in range(60)],
            "raw": pa.array([b"\xff%d" % k for k in range(60)]),
            "when": pa.array(list(range(60)), pa.timestamp("s")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=11)
    for unit_bytes in (1, 10**6):  # slices of row groups, and whole ones
        source = open_files(tmp_path / "t.parquet", monkeypatch, unit_bytes=unit_bytes)
        rows, bad = read(source, RowOptions(source.options), chunk=1)
        assert list(map(json.loads, rows.values())) == [{"text": f"text é {k}"} for k in range(60) if k != 7]
        assert list(rows) == [k for k in range(60) if k != 7] and bad == ["7: text is null"]
        carried = replace(source.options, carried=("when", "id", "text", "score", "raw"))
        source = FileSource(str(tmp_path / "t.parquet"), carried)
        rows, _ = read(source, RowOptions(carried))
        assert (
            rows[2]
            == (
                '{"text": "text é 2", "when": "1970-01-01T00:00:02", "id": 2, "score": 1.0, "raw": "\ufffd2"}\n'
            ).encode()
        )
        assert json.loads(rows[3])["score"] is None


def test_lists_of_texts_and_several_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": ["x", "y"], "b": [["1", "2"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_files(tmp_path / "t.parquet", monkeypatch, unit_bytes=1, text_key="a", more_keys=("b",), lists=True)
    rows, _ = read(source, RowOptions(source.options))
    assert list(map(json.loads, rows.values())) == [{"a": "x", "b": ["1", "2"]}, {"a": "y", "b": []}]


def test_json_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"text": "a\nb"}, {"no": 1}, {"text": "c"}], indent=1))
    for unit_bytes in (1, 10**6):
        source = open_files(tmp_path / "x.json", monkeypatch, unit_bytes=unit_bytes)
        rows, bad = read(source, RowOptions(source.options))
        assert rows == {0: b'{"text": "a\\nb"}\n', 2: b'{"text": "c"}\n'} and bad == ["1: no text key"]


def test_nothing_at_all() -> None:
    for content, rows in ((b"", 0), (b"\n", 1), (b"\r\n", 1)):
        unit = Unit("jsonl", "x", 0, {}, payload=content)
        block = RowReader(RowOptions(ReadOptions()))(unit)
        assert (len(block.lengths), block.rows, block.bad) == (0, rows, [])
