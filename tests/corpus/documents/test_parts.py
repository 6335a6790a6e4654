"""Parts of a source: the same documents in the same order, found without reading the text."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.documents.hub import HubSource
from automodel_cli.corpus.documents.parts import Part, find_parts, part_units
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions, Unit

CHUNK = 2  # documents: 16 KiB of text


def texts(units: list[Unit], options: ReadOptions) -> list[str]:
    return [text for unit in units for text in read_unit(unit, options).texts]


def of_parts(source: FileSource, found: list[Part]) -> list[str]:
    return texts([unit for part in found for unit in part_units(source, part, CHUNK)], source.options)


def whole(source: FileSource) -> list[str]:
    return texts(list(source.units(None, CHUNK)), source.options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of lines, long and short, and of row groups; beside them texts, some of which are large."""
    rng = random.Random(0)
    (tmp_path / "rows").mkdir()
    (tmp_path / "texts").mkdir()
    for number in range(4):
        rows = [{"text": f"{number}.{k} " + "x" * rng.choice([0, 10, 5000, 90_000])} for k in range(40)]
        ending = "" if number == 2 else "\n"
        (tmp_path / "rows" / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)) + ending)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows" / f"{number}.parquet", row_group_size=7)
    (tmp_path / "rows/3a.jsonl").write_text("")
    for number in range(60):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text("word " * rng.choice([0, 10, 3000, 20_000]))
    return tmp_path


@pytest.mark.parametrize("name", ["rows/*.jsonl", "rows/*.parquet", "rows", "texts", "rows/1.jsonl"])
@pytest.mark.parametrize("part_bytes", [1, 20_000, 300_000, 10**9])
def test_documents_are_those_of_the_source(folder: Path, name: str, part_bytes: int) -> None:
    source = FileSource(str(folder / name), ReadOptions())
    found = find_parts(source, CHUNK, part_bytes)
    assert of_parts(source, found) == whole(source)
    ends = [(part.stop_file, part.stop_at) for part in found]
    assert [(part.file, part.at) for part in found] == [(0, 0), *ends[:-1]] and ends[-1] == (len(source.files), 0)
    if part_bytes == 300_000 and name != "texts":
        sizes = [part.bytes for part in found[:-1]]
        assert sizes and all(300_000 <= size <= 1_200_000 for size in sizes)  # a row group has up to 630 KB
    if part_bytes == 10**9:
        assert len(found) == 1


def test_a_document_a_line_and_files_that_cannot_be_cut(folder: Path) -> None:
    source = FileSource(str(folder / "rows/1.jsonl"), ReadOptions(document="line", input_format="text"))
    assert len(find_parts(source, CHUNK, 100_000)) > 3
    assert of_parts(source, find_parts(source, CHUNK, 100_000)) == whole(source)
    delimited = FileSource(str(folder / "rows/1.jsonl"), ReadOptions(document="\n{", input_format="text"))
    assert len(find_parts(delimited, CHUNK, 100_000)) == 1


def test_units_are_those_of_the_source_where_small_files_share_one(folder: Path) -> None:
    """So that a Megatron file that is made of the first of them has the same rows."""
    source = FileSource(str(folder / "texts"), ReadOptions())
    found = find_parts(source, CHUNK, 20_000)
    units = [unit for part in found for unit in part_units(source, part, CHUNK)]
    assert len(found) > 10
    assert [(unit.file, unit.payload) for unit in units if unit.kind == "files"] == [
        (unit.file, unit.payload) for unit in source.units(None, CHUNK) if unit.kind == "files"
    ]


def test_lines_are_found_with_a_small_read_for_each_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    after_line_end = parts.after_line_end
    monkeypatch.setattr(parts, "after_line_end", lambda h, at, size: looks.append(at) or after_line_end(h, at, size))
    source = FileSource(str(folder / "rows/*.jsonl"), ReadOptions())
    assert len(looks) <= len(find_parts(source, CHUNK, 300_000)) + len(source.files)


def test_a_stream_is_one_part() -> None:
    hub = HubSource("some/dataset", None, "train", ReadOptions())
    assert find_parts(hub, CHUNK, 1) == [Part(0, 0, 1, 0, 0)]


@pytest.mark.parametrize(
    ("mib", "part_mib"), [(1, 16), (4000, 16), (10_000, 10_000 / 256), (65_536, 256), (1_000_000, 256)]
)
def test_a_part_is_as_large_as_the_source_suggests(folder, monkeypatch, mib, part_mib):
    """Enough parts for many machines, of a size worth starting for, and few of a terabyte."""
    source = FileSource(str(folder / "rows"), ReadOptions())
    source.files = [dataclasses.replace(source.files[0], bytes=mib << 20, compression="")]
    assert parts._usual_bytes(source) == int(part_mib * 2**20)
