"""Cutting files into units: the documents are the same for every chunk size and from every cursor."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from automodel_cli.corpus.documents.cutting.files import cut_files
from automodel_cli.corpus.documents.listing import list_files
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.errors import DataError

SIZES = (1, 7, 64, 1000, 10**6)
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "délta",
    "漢字",
    "👍",
    "epsilon\nzeta",
    "",
    "eta,",
    "theta.",
    "iota's",
    "42",
    "",
]


def some_texts(count: int = 40) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


def cut(
    path: Path,
    chunk_bytes: int,
    cursor: dict | None = None,
    *,
    document: str = "file",
    huge: bool = True,
    tail=None,
) -> list[Unit]:
    files = list_files(str(path)).files
    options = ReadOptions(document=document)
    start = cursor or {"file": 0, "at": 0}
    return list(cut_files(files, options, start, chunk_bytes=chunk_bytes, cut_huge_texts=huge, tail_from=tail))


def documents(units: list[Unit], document: str = "file") -> list[str]:
    found: list[str] = []
    for unit in units:
        texts = read_unit(unit, ReadOptions(document=document)).texts
        if unit.continues and texts:
            found[-1] += texts.pop(0)
        found += texts
    return found


def check(path: Path, expected: list[str], *, document: str = "file") -> None:
    """Every chunk size gives ``expected``, and so does every cursor with any other chunk size after it."""
    for size in SIZES:
        units = cut(path, size, document=document)
        assert documents(units, document) == expected, size
        for k in range(0, len(units), max(1, len(units) // 5)):
            before = documents(units[:k], document)
            after = cut(path, SIZES[(k + 1) % len(SIZES)], units[k].cursor, document=document)
            if after and after[0].continues:
                rest = documents([Unit("piece", "", 0, {}, payload=before.pop().encode()), *after], document)
            else:
                rest = documents(after, document)
            assert before + rest == expected, (size, k)


def write(path: Path, data: bytes) -> None:
    if path.suffix == ".gz":
        half = len(data) // 2  # two members, as `cat a.gz b.gz` makes
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])
    elif path.suffix == ".zst":
        half = len(data) // 2
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    texts = some_texts()
    for end in ("\n", ""):
        path = tmp_path / f"a.jsonl{suffix}"
        write(path, ("\n".join(json.dumps({"text": text}) for text in texts) + end).encode())
        check(path, texts)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_and_delimiters(tmp_path: Path, suffix: str) -> None:
    lines = [text.replace("\n", " ") for text in some_texts()]
    path = tmp_path / f"a.txt{suffix}"
    write(path, "\n".join(lines).encode())
    check(path, lines, document="line")
    write(path, "<->".join(lines).encode())
    check(path, lines, document="<->")


def test_delimiters_that_overlap_themselves(tmp_path: Path) -> None:
    rng = random.Random(2)
    text = "".join(rng.choice(["\n", "\n", "a", "b"]) for _ in range(2000))
    (tmp_path / "a.txt").write_text(text)
    expected = [part for part in text.split("\n\n") if part.strip()]
    check(tmp_path / "a.txt", expected, document="\n\n")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_one_huge_text_is_one_document_in_pieces(tmp_path: Path, suffix: str) -> None:
    text = "\ufeff"[:0] + "\n".join(some_texts(60))
    path = tmp_path / f"a.txt{suffix}"
    write(path, text.encode())
    check(path, [text])
    pieces = cut(path, 64)
    assert len(pieces) > 10 and [unit.continues for unit in pieces] == [False] + [True] * (len(pieces) - 1)
    assert [unit.unfinished for unit in pieces] == [True] * (len(pieces) - 1) + [False]
    for unit in pieces[1:]:  # cut between a letter and a space
        piece = read_unit(unit, ReadOptions()).texts[0]
        assert piece[0] in " \n"
    assert len(cut(path, 64, huge=False)) == 1


def test_a_huge_text_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"word " * 1000 + b"\xff")
    (tmp_path / "b.txt").write_bytes(b"word " * 1000 + "é".encode()[:1])
    (tmp_path / "c.txt").write_text("fine")
    units = cut(tmp_path, 64)
    assert documents(units) == ["fine"]
    bad = [row for unit in units for row in read_unit(unit, ReadOptions()).bad]
    assert [(row.name, row.reason) for row in bad] == [("a.txt", "not UTF-8"), ("b.txt", "not UTF-8")]


def test_tail_of_a_single_text_is_cut_where_nanogpt_cuts_it(tmp_path: Path) -> None:
    text = "".join(some_texts(30))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    border = int(len(text) * 0.9)
    for name in ("a.txt", "marked.txt"):
        for size in SIZES:
            units = cut(tmp_path / name, size, tail=border)
            assert documents(units) == [text[:border], text[border:]]
            assert [u.split for u in units if not u.continues] == ["train", "val"]


def test_small_files_share_a_unit(tmp_path: Path) -> None:
    texts = some_texts(30)
    for k, text in enumerate(texts):
        (tmp_path / f"{k:03d}.txt").write_text(text)
    check(tmp_path, texts)
    assert len(cut(tmp_path, 10**6)) == 1


@pytest.mark.parametrize("layout", ["array", "objects", "lines", "pretty"])
def test_json_files(tmp_path: Path, layout: str) -> None:
    texts = some_texts()
    rows = [{"id": k, "text": text} for k, text in enumerate(texts)]
    if layout == "array":
        data = json.dumps(rows)
    elif layout == "pretty":
        data = "\n".join(json.dumps(row, indent=2) for row in rows)
    else:
        data = ("\n" if layout == "lines" else " ").join(json.dumps(row) for row in rows)
    (tmp_path / "a.json").write_text(data)
    check(tmp_path / "a.json", texts)


def test_json_array_bad_rows_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": null}, 5, {"x": 1}, {"text": "b"}]')
    (unit,) = cut(path, 10**6)
    found = read_unit(unit, ReadOptions())
    assert found.texts == ["a", "b"] and [row.row for row in found.bad] == [1, 2, 3] and found.rows == 5
    for damaged in ('[{"text": "a"}', '[{"text": "a"}, {"te', '[{"text": "a"} oops]'):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"a\.json is malformed or cut off after value 1"):
            cut(path, 10**6)
    path.write_bytes(b'[{"text": "\xff"}]')
    with pytest.raises(DataError, match=r"a\.json is not UTF-8"):
        cut(path, 10**6)
    path.write_text("[]")
    assert cut(path, 10**6) == []


@pytest.mark.parametrize("group", [1, 5, 1000])
def test_parquet(tmp_path: Path, group: int) -> None:
    texts = some_texts(12 if group == 1 else 40)
    table = pa.table({"n": [{"x": k} for k in range(len(texts))], "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    check(tmp_path / "a.parquet", texts)


def test_parquet_bad_rows_and_types(tmp_path: Path) -> None:
    raw = pa.array([b"ok", None, b"\xff\xfe", b"last"], pa.binary())
    wrong_strings = pa.Array.from_buffers(pa.string(), 4, raw.buffers(), null_count=1)
    for column in (raw, wrong_strings, wrong_strings.cast(pa.large_string(), safe=False)):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        (unit,) = cut(tmp_path / "a.parquet", 10**6)
        found = read_unit(unit, ReadOptions())
        assert found.texts == ["ok", "last"]
        assert [(row.row, row.reason) for row in found.bad] == [(1, "text is null"), (2, "not UTF-8")]
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds int64, not text"):
        cut(tmp_path / "a.parquet", 10**6)
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text'; it has \['body'\]"):
        cut(tmp_path / "a.parquet", 10**6)
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"cannot read a\.parquet"):
        cut(tmp_path / "a.parquet", 10**6)
    dictionary = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"text": dictionary}), tmp_path / "a.parquet")
    assert documents(cut(tmp_path / "a.parquet", 10**6)) == ["x", "y", "x"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_that_stop_early_are_errors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    write(path, "".join(json.dumps({"text": text}) + "\n" for text in some_texts(200)).encode())
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) - 9, len(whole) // 4):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match=r"a\.jsonl\.\w+ is damaged or cut off"):
            cut(path, 1000)
    path.write_bytes(b"nonsense" + whole)
    with pytest.raises(DataError, match="damaged"):
        cut(path, 1000)
