"""Documents longer than --max-document-bytes: bad rows in their place or cut, the same for every unit size and kind."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from automodel_cli.config.schema import preprocess as schema_preprocess
from automodel_cli.corpus.documents import units
from automodel_cli.corpus.documents.cutting import cut as cut_module
from automodel_cli.corpus.documents.cutting.files import cut_files
from automodel_cli.corpus.documents.listing import list_files
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader, count_rows

MOST = 200
SHORT = ["one", "zwei é漢", "x" * 150, "last"]
LONG = {1: "a long one " * 40, 3: "y" * (MOST + 1), 4: "漢" * 1000}  # by row
ROWS = [SHORT[0], LONG[1], SHORT[1], LONG[3], LONG[4], SHORT[2], SHORT[3]]
PACK = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def cut(path: Path, chunk: int, options: ReadOptions, cursor: dict | None = None, **how: object) -> list[Unit]:
    files = list_files(str(path)).files
    how = {"cut_huge_texts": False, "tail_from": None, **how}
    return list(cut_files(files, options, cursor or {"file": 0, "at": 0}, chunk_bytes=chunk, **how))


def outcome(found_units: list[Unit], options: ReadOptions, rows: int = 0) -> tuple[list[str], list[int]]:
    """Texts, and the rows of those left out as too long."""
    texts, bad = [], []
    for unit in found_units:
        found = read_unit(unit, options)
        texts += found.texts
        assert all("longer than 200 bytes (--max-document-bytes)" in row.reason for row in found.bad)
        bad += [rows + row.row for row in found.bad]
        assert unit.rows in (None, found.rows)
        rows += found.rows
    return texts, bad


@pytest.fixture(autouse=True)
def units_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Already documents of 60 bytes are long."""
    monkeypatch.setattr(cut_module, "_ALONE_BYTES", 60)
    monkeypatch.setattr(cut_module, "_ALONE_CHUNKS", 1)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("form", ["jsonl", "line", "delimited", "json"])
@pytest.mark.parametrize("ended", [True, False])
def test_every_kind_leaves_out_the_same_rows(tmp_path: Path, suffix: str, form: str, ended: bool) -> None:
    options = {
        "jsonl": ReadOptions(max_document_bytes=MOST + 12),  # {"text": ""}
        "line": ReadOptions(document="line", max_document_bytes=MOST),
        "delimited": ReadOptions(document="<->", max_document_bytes=MOST),
        "json": ReadOptions(max_document_bytes=MOST + 12),
    }[form]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ROWS]
    text = {
        "jsonl": "\n".join(lines) + "\n" * ended,
        "line": "\n".join(ROWS) + "\n" * ended,
        "delimited": "<->".join(ROWS) + "<->" * ended,
        "json": "[" + ",\n".join(lines) + "]" if ended else "\n\n" + "\n".join(lines),
    }[form]
    path = tmp_path / f"a.{form if 'json' in form else 'txt'}{suffix}"
    path.write_bytes(PACK[suffix](text.encode()))
    for chunk in (1, 50, 199, 300, 10**6):
        cuts = cut(path, chunk, options)
        reason = f"longer than {options.max_document_bytes:,} bytes (--max-document-bytes)"
        texts, bad, rows = [], [], 0
        for unit in cuts:
            found = read_unit(unit, options)
            assert {row.reason for row in found.bad} <= {reason}
            assert unit.rows in (None, found.rows)
            texts += found.texts
            bad += [rows + row.row for row in found.bad]
            rows += found.rows
        assert (texts, bad) == (SHORT, list(LONG)), chunk
        for unit in cuts[:: max(1, len(cuts) // 3)]:
            later = cut(path, 77, options, unit.cursor)
            rest = [text for one in later for text in read_unit(one, options).texts]
            assert rest == texts[len(texts) - len(rest) :]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("check", [False, True])
def test_rows_that_are_moved(tmp_path: Path, suffix: str, check: bool) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ROWS]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix]("".join(lines).encode()))
    read = ReadOptions(max_document_bytes=MOST + 12)
    for chunk in (1, 300, 10**6):
        reader, moved, bad, rows = RowReader(RowOptions(read, check=check, digest=check)), b"", [], 0
        for unit in cut(path, chunk, read):
            block = reader(unit)
            assert count_rows(unit, read) == block.rows and int(block.lengths.sum()) == len(block.data)
            moved += block.data.tobytes()
            bad += [rows + row.row for row in block.bad]
            rows += block.rows
        assert moved.decode() == "".join(line for k, line in enumerate(lines) if k not in LONG)
        assert bad == list(LONG)


def test_parquet(tmp_path: Path) -> None:
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    for kind in kinds:
        table = pa.table({"n": range(len(ROWS)), "text": pa.array(ROWS).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        for chunk in (1, 50, 10**6):
            options = ReadOptions(max_document_bytes=MOST)
            assert outcome(cut(tmp_path / "a.parquet", chunk, options), options) == (SHORT, list(LONG))


@pytest.mark.parametrize("nested", [False, True])
def test_a_dictionary_page_stands_for_much_text_and_is_unfolded_some_rows_at_a_time(
    tmp_path: Path, nested: bool
) -> None:
    texts = ["short", "word " * 30, None] * 400
    column = pa.array([[text, "b"] if text else None for text in texts]) if nested else pa.array(texts)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    options = ReadOptions(max_document_bytes=1000, lists=nested)
    cuts = cut(tmp_path / "a.parquet", 300, options)
    assert len(cuts) > 50 and max(unit.size for unit in cuts) <= 300
    found = [read_unit(unit, options) for unit in cuts]
    expected = [([text, "b"],) if nested else text for text in texts if text]
    assert [text for one in found for text in one.texts] == expected
    assert sum(one.rows for one in found) == len(texts) and sum(len(one.bad) for one in found) == 400
    later = cut(tmp_path / "a.parquet", 1000, options, cuts[7].cursor)
    before = sum(unit.rows or 0 for unit in cuts[:7])
    assert sum(unit.rows or 0 for unit in later) == len(texts) - before


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_is_one_document(tmp_path: Path, suffix: str) -> None:
    options = ReadOptions(max_document_bytes=MOST)
    for name, text in (("a", "word " * 100), ("b", "fine"), ("c", "漢" * 70)):
        (tmp_path / f"{name}.txt{suffix}").write_bytes(PACK[suffix](text.encode()))
    found = [read_unit(unit, options) for unit in cut(tmp_path, 50, options)]
    assert [text for one in found for text in one.texts] == ["fine"]
    assert [row.name for one in found for row in one.bad] == [f"a.txt{suffix}", f"c.txt{suffix}"]
    pieces = cut(tmp_path / f"a.txt{suffix}", 50, options, cut_huge_texts=True)
    assert "".join(read_unit(unit, options).texts[0] for unit in pieces) == "word " * 100


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_text_without_a_place_to_cut_is_cut_at_the_same_places_for_every_unit_size(tmp_path: Path, suffix: str) -> None:
    text = "some words " + "漢" * 500 + " " + "then words " * 20 + "x" * 777
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](text.encode()))
    options = ReadOptions(max_document_bytes=MOST)
    forced = None
    for chunk in (7, 40, 60, 90):
        cuts = cut(path, chunk, options, cut_huge_texts=True)
        pieces = [read_unit(unit, options).texts[0] for unit in cuts]
        assert "".join(pieces) == text
        assert max(unit.size for unit in cuts) <= MOST + chunk
        starts = np.cumsum([0, *map(len, pieces)])[1:-1].tolist()
        inside = [k for k in starts if not (text[k - 1].isalpha() and text[k] == " ")]
        assert forced in (None, inside)
        forced = inside
    assert len(forced or []) > 10


def test_what_the_configuration_and_the_readers_take_for_usual_is_the_same() -> None:
    assert schema_preprocess.MAX_DOCUMENT_BYTES == units.MAX_DOCUMENT_BYTES
    assert schema_preprocess.InputFormat == units.InputFormat
