"""From a unit to its texts, in whichever process runs it. A bad row is reported, never fatal; a file that cannot
be read is an error.

Rows may hold several texts (``ReadOptions.keys``) or lists of them; a row that lacks one is bad as a whole, so that
documents of different keys stay side by side.

Bad: a line that is not JSON, a row that is not an object, lacks the text key, or holds null or something that is
no string, bytes that are not UTF-8, and lone surrogates (``"\\ud800"``), which no tokenizer can take; and what is
longer than ``ReadOptions.max_document_bytes``, as it stands in the file.

A document that is ``alone`` in its unit is never copied: its bytes and its text are all the memory it takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json  # twice as fast as json, takes bytes; comes with pydantic

from automodel_cli.corpus.documents.content import Content, look_at
from automodel_cli.corpus.documents.inputs import read_input, read_whole
from automodel_cli.corpus.documents.units import (
    NOT_UTF8,
    BadRow,
    ReadOptions,
    Texts,
    Unit,
    document_of,
    too_long,
)
from automodel_cli.errors import DataError
from automodel_cli.storage.urls import is_remote

BOM = b"\xef\xbb\xbf"


def read_unit(unit: Unit, options: ReadOptions) -> Texts:
    """The documents of ``unit``, in order.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        found = _READERS[unit.kind](unit, options)
    except OSError as error:
        raise DataError(f"cannot read {unit.name}: {error.strerror or error}", "check the file") from error
    if options.lists and unit.kind in _TEXT_KINDS:
        found.texts = [(text,) for text in found.texts]
    return found


def most_bytes(unit: Unit, options: ReadOptions) -> int:
    """How long a document of ``unit`` may be."""
    return sys.maxsize if unit.measured else options.max_document_bytes


def content_of(unit: Unit) -> bytes:
    """The bytes of a unit: handed over, or ``start`` to ``stop`` of its file."""
    if unit.payload is not None:
        return unit.payload
    return _read_range(unit, unit.start)


def _read_range(unit: Unit, start: int) -> bytes:
    data = read_input(unit.path, start, unit.stop - start)
    if len(data) != unit.stop - start:
        raise DataError(f"{unit.name} became shorter while it was read", "run the command again")
    if start == 0 and is_remote(unit.path):
        _refuse_packed(look_at(data), unit.name)
    return data


def _refuse_packed(content: Content, name: str) -> None:
    """Of many objects only the names are looked at before they are read."""
    if content.compression or content.kind:
        found = f"compressed ({content.compression})" if content.compression else content.not_text
        raise DataError(f"{name} is {found}, and its name does not say so", "name it for what it is, or leave it out")


def _without_bom(unit: Unit) -> bytes:
    if unit.start or unit.payload is not None or is_remote(unit.path):
        data = content_of(unit)
        return data[3:] if unit.start == 0 and data.startswith(BOM) else data
    marked = unit.stop >= 3 and read_input(unit.path, 0, 3) == BOM
    return _read_range(unit, 3 * marked)


# ---------------------------------------------------------------------------------------------- rows


def _read_jsonl(unit: Unit, options: ReadOptions) -> Texts:
    lines, most = _lines(unit), most_bytes(unit, options)
    found = Texts([], rows=len(lines))
    key, lists, one_key = options.text_key, options.lists, not options.more_keys
    for row, line in enumerate(lines):
        if len(line) > most:
            found.add(row, too_long(most))
            continue
        if not line or line.isspace():
            continue
        try:
            value = from_json(line, cache_strings="keys")
            if one_key and type(value) is dict and type(text := value.get(key)) is str:  # nearly always
                found.texts.append((text,) if lists else text)
                found.numbers.append(row)
                continue
            found.add(row, document_of(value, options))
        except ValueError:
            found.add(row, _document_or_reason(line, row, options))
    return found


def _document_or_reason(line: bytes, row: int, options: ReadOptions) -> Any:
    """What the standard library makes of a line that the fast parser refused, or why it is of no use.

    The fast one refuses lone surrogates and deep nesting; texts that it gives can always be encoded.
    """
    try:
        return document_of(json.loads(line.decode()), options)
    except UnicodeDecodeError:
        return BadRow(row, NOT_UTF8)
    except (ValueError, RecursionError):
        return BadRow(row, "malformed JSON")


def _lines(unit: Unit) -> list[bytes]:
    """The lines of a unit without their ends; one that is alone keeps its end, which JSON does not mind."""
    data = _without_bom(unit)
    if unit.alone:
        return [data]
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _read_values(unit: Unit, options: ReadOptions) -> Texts:
    """Texts and bad rows that the parent picked from a JSON array or a run of objects."""
    found = Texts([], rows=len(unit.payload))
    for row, value in enumerate(unit.payload):
        found.add(row, value)
    return found


def _read_parquet(unit: Unit, options: ReadOptions) -> Texts:
    from automodel_cli.corpus.documents import columns  # pyarrow, a quarter second that JSONL does not pay

    return columns.documents_of(columns.read_row_groups(unit, options), options)


def _read_rows(unit: Unit, options: ReadOptions) -> Texts:
    from automodel_cli.corpus.documents import columns  # as above

    return columns.documents_of(columns.unpack(unit.payload), options)


# ---------------------------------------------------------------------------------------------- text


def _read_lines(unit: Unit, options: ReadOptions) -> Texts:
    """One document a line, without its line end; blank lines separate and are no documents."""
    lines, most = _lines(unit), most_bytes(unit, options)
    found = Texts([], rows=len(lines))
    for row, line in enumerate(lines):
        end = _length_without(line, b"\r", b"\n") if unit.alone else len(line) - line.endswith(b"\r")
        _add_text(found, row, line, end, most)
    return found


def _length_without(data: bytes, *ends: bytes) -> int:
    """The length of ``data`` without the last of ``ends``, and without those before it."""
    length = len(data)
    for end in reversed(ends):
        length -= len(end) * data.endswith(end, 0, length)
    return length


def _read_delimited(unit: Unit, options: ReadOptions) -> Texts:
    """The text between delimiters, untouched; nothing between two of them is no document."""
    data, delimiter, most = _without_bom(unit), options.document.encode(), most_bytes(unit, options)
    if unit.alone:
        found = Texts([], rows=1)
        _add_text(found, 0, data, _length_without(data, delimiter), most)
        return found
    parts = data.split(delimiter)
    found = Texts([], rows=len(parts) - (not parts[-1]))
    for row, part in enumerate(parts):
        _add_text(found, row, part, len(part), most)
    return found


def _read_files(unit: Unit, options: ReadOptions) -> Texts:
    """Small files, each one document as it is; an empty one is no document."""
    found = Texts([])
    for number, (path, name) in enumerate(unit.payload):
        data = read_whole(path)
        if is_remote(path) and (content := look_at(data)).not_text:
            found.add(number, BadRow(0, f"it is {content.not_text}"), name)
            continue
        begin = 3 * data.startswith(BOM)
        if len(data) > begin:
            _add_text(found, number, data, len(data), options.max_document_bytes, begin=begin, name=name)
    return found


def _read_piece(unit: Unit, options: ReadOptions) -> Texts:
    """Part of a large text that is one document; the parent made sure that it is UTF-8."""
    return Texts([_without_bom(unit).decode()], numbers=[0])


def _read_bad(unit: Unit, options: ReadOptions) -> Texts:
    """A row, or a file (then ``rows`` is 0), of which the parent knows that it is of no use."""
    rows = unit.rows or 0
    return Texts([], rows=rows, bad=[BadRow(0, unit.payload, None if rows else unit.name)])


def _add_text(
    found: Texts, row: int, data: bytes, end: int, most: int, *, begin: int = 0, name: str | None = None
) -> None:
    """``data`` from ``begin`` to ``end`` as a document, without a copy; blank is none, except for a file."""
    if len(data) - begin > most:
        found.add(row, too_long(most), name)
        return
    if name is None and (not data or data.isspace()):
        return
    try:
        whole = begin == 0 and end == len(data)
        found.add(row, data.decode() if whole else str(memoryview(data)[begin:end], "utf-8"), name)
    except UnicodeDecodeError:
        found.add(row, BadRow(row, NOT_UTF8), name)


_TEXT_KINDS = ("line", "delimited", "files", "piece")
_READERS: dict[str, Callable[[Unit, ReadOptions], Texts]] = {
    "jsonl": _read_jsonl,
    "line": _read_lines,
    "delimited": _read_delimited,
    "files": _read_files,
    "piece": _read_piece,
    "parquet": _read_parquet,
    "rows": _read_rows,
    "values": _read_values,
    "bad": _read_bad,
}
