"""Units to texts: every kind of bad row is counted and placed, everything else comes through untouched."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.units import ReadOptions, Texts, Unit
from automodel_cli.errors import DataError


def read(kind: str, data: bytes, document: str = "file", start: int = 0, **options: str) -> Texts:
    unit = Unit(kind, "a.txt", 0, {}, payload=data, start=start)  # type: ignore[arg-type]
    return read_unit(unit, ReadOptions(document=document, **options))


def bad(found: Texts) -> list[tuple[int, str]]:
    return [(row.row, row.reason) for row in found.bad]


def test_jsonl_bad_rows_are_placed_and_the_rest_goes_on() -> None:
    lines = [
        b'{"text": "one"}',
        b"{broken",
        b'{"other": 1}',
        b'{"text": null}',
        b'{"text": 5}',
        b"",
        b'["text"]',
        b'"text"',
        b"7",
        b'{"text": "\xff"}',
        b'{"text": "a\\ud800b"}',
        b'{"text": "pair \\ud83d\\udc4d"} ',
        b'  {"text": "two"}\r',
        b'{"text": "three"} trailing',
        b'{"text": ["x"]}',
        b'{"text": {}}',
        b'{"text": true}',
        b'{"text": ""}',
        b"[" * 100_000,
    ]
    found = read("jsonl", b"\n".join(lines) + b"\n")
    assert found.texts == ["one", "pair 👍", "two", ""]
    assert found.rows == len(lines)
    assert bad(found) == [
        (1, "malformed JSON"),
        (2, "no text key"),
        (3, "text is null"),
        (4, "text is a number, not a string"),
        (6, "row is a list, not an object"),
        (7, "row is a string, not an object"),
        (8, "row is a number, not an object"),
        (9, "not UTF-8"),
        (10, "lone surrogate"),
        (13, "malformed JSON"),
        (14, "text is a list, not a string"),
        (15, "text is an object, not a string"),
        (16, "text is true or false, not a string"),
        (18, "malformed JSON"),
    ]


@pytest.mark.parametrize("escape", ["\\ud800", "\\uDFFF", "\\uD83D", "x\\udbff\\u0041"])
def test_lone_surrogates_in_either_case(escape: str) -> None:
    found = read("jsonl", b'{"text": "' + escape.encode() + b'"}')
    assert found.texts == [] and bad(found) == [(0, "lone surrogate")]


def test_jsonl_equals_json_loads_on_odd_but_valid_lines() -> None:
    rows = ["é漢\U0001f44d", "a\nb\t\u2028\x85", '"quotes"', "\\ud83d", "", " "]
    for ascii_only in (True, False):
        data = "\n".join(json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in rows)
        assert read("jsonl", data.encode()).texts == rows


def test_text_key_and_byte_order_mark() -> None:
    data = b'\xef\xbb\xbf{"body": "x", "text": "y"}\n'
    assert read("jsonl", data, text_key="body").texts == ["x"]
    assert bad(read("jsonl", data, start=10)) == [(0, "malformed JSON")]  # a mark inside a file is no mark


def test_lines() -> None:
    found = read("line", b"one\r\n\n  \ntwo \n\xff\nthree")
    assert found.texts == ["one", "two ", "three"]
    assert found.rows == 6 and bad(found) == [(4, "not UTF-8")]


def test_delimited_is_untouched_between_delimiters() -> None:
    found = read("delimited", b"a\n\nb\n---\n c \n---\n\n---\nlast", document="---\n")
    assert found.texts == ["a\n\nb\n", " c \n", "last"]


def test_files_are_documents_as_they_are(tmp_path: Path) -> None:
    contents = {"a.txt": b"\xef\xbb\xbf A\r\n", "b.txt": b"", "c.txt": b"\xff", "d.txt": "é".encode()}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    unit = Unit("files", "a.txt", 0, {}, payload=[(str(tmp_path / name), name) for name in contents])
    found = read_unit(unit, ReadOptions())
    assert found.texts == [" A\r\n", "é"]
    assert [(row.name, row.reason) for row in found.bad] == [("c.txt", "not UTF-8")]


def test_unreadable_and_shrinking_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    with pytest.raises(DataError, match="became shorter"):
        read_unit(Unit("jsonl", "a.jsonl", 0, {}, path=str(tmp_path / "a.jsonl"), stop=10), ReadOptions())
    with pytest.raises(DataError, match=r"cannot read gone\.jsonl"):
        read_unit(Unit("jsonl", "gone.jsonl", 0, {}, path=str(tmp_path / "gone.jsonl"), stop=1), ReadOptions())


def test_fields_of_a_row_are_usable_together_or_not_at_all() -> None:
    options = ReadOptions("a", more_keys=("b",), lists=True)
    lines = [
        b'{"a": "one", "b": ["two", "three"], "c": null}',
        b'{"a": "one"}',
        b'{"b": "two"}',
        b'{"a": "one", "b": [1]}',
        b'{"a": ["x", null], "b": ""}',
        b'{"a": "", "b": []}',
        b'{"a": "one", "b": {"c": 1}}',
        b'{"a": "\\ud800", "b": ""}',
        b'{"a": [["x"]], "b": ""}',
        b"[]",
        b"3",
        b"{",
        b'{"a": "\xff"}',
        b"  ",
        b'{"b": "last", "a": "\\u00e9"}',
    ]
    found = read_unit(Unit("jsonl", "a", 0, {}, payload=b"\n".join(lines)), options)
    assert found.texts == [("one", ["two", "three"]), ("", []), ("é", "last")]
    assert found.numbers == [0, 5, 14] and found.rows == 15
    assert bad(found) == [
        (1, "no text key in 'b'"),
        (2, "no text key in 'a'"),
        (3, "text is a number, not a string in a list in 'b'"),
        (4, "text is null in a list in 'a'"),
        (6, "text is an object, not a string in 'b'"),
        (7, "lone surrogate in 'a'"),
        (8, "text is a list, not a string in a list in 'a'"),
        (9, "row is a list, not an object"),
        (10, "row is a number, not an object"),
        (11, "malformed JSON"),
        (12, "not UTF-8"),
    ]
    assert [row.after for row in found.bad] == [1, 1, 1, 1, *[2] * 7]


def test_text_files_have_one_field(tmp_path: Path) -> None:
    options = ReadOptions(document="line", lists=True)
    found = read_unit(Unit("line", "a.txt", 0, {}, payload=b"x\n\ny"), options)
    assert found.texts == [("x",), ("y",)]


def _by_the_standard_library(lines: list[bytes]) -> tuple[list[str], list[int]]:
    """Texts and the numbers of bad rows, as ``json`` and ``str.encode`` decide."""
    texts, bad = [], []
    for row, line in enumerate(lines):
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line.decode())
            text = value["text"] if isinstance(value, dict) else None
            text.encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            bad.append(row)
        else:
            texts.append(text)
    return texts, bad


@examples(150)
@given(st.data())
def test_what_counts_as_a_row_is_what_json_says(data: st.DataObject) -> None:
    """Valid rows, and rows with bytes cut out, put in or exchanged."""
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
    row = st.fixed_dictionaries({"text": st.text(st.characters()) | value}) | value
    lines = []
    for one in data.draw(st.lists(row, min_size=1, max_size=4)):
        line = bytearray(json.dumps(one, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass"))
        for _ in range(data.draw(st.integers(0, 2))):
            place = data.draw(st.integers(0, len(line)))
            line[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        lines.append(bytes(line).replace(b"\n", b" "))
    found = read("jsonl", b"\n".join(lines))
    texts, bad = _by_the_standard_library(lines)
    assert found.texts == texts
    assert [row.row for row in found.bad] == bad
