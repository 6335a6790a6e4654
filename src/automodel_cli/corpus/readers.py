"""From a unit to its texts, in whichever process runs it. A bad row is reported, never fatal; a file that cannot
be read is an error.

Rows may hold several texts (``ReadOptions.keys``) or lists of them; a row that lacks one is bad as a whole, so that
documents of different keys stay side by side.

Bad: a line that is not JSON, a row that is not an object, lacks the text key, or holds null or something that is
no string, bytes that are not UTF-8, and lone surrogates (``"\\ud800"``), which no tokenizer can take.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import from_json  # twice as fast as json, takes bytes; comes with pydantic

from automodel_cli.corpus.units import BadRow, ReadOptions, Texts, Unit
from automodel_cli.errors import DataError

BOM = b"\xef\xbb\xbf"
MISSING = object()
NOT_UTF8 = "not UTF-8"


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


def content_of(unit: Unit) -> bytes:
    """The bytes of a unit: handed over, or ``start`` to ``stop`` of its file."""
    if unit.payload is not None:
        return unit.payload
    with Path(unit.path).open("rb") as handle:
        handle.seek(unit.start)
        data = handle.read(unit.stop - unit.start)
    if len(data) != unit.stop - unit.start:
        raise DataError(f"{unit.name} became shorter while it was read", "run the command again")
    return data


def _without_bom(unit: Unit) -> bytes:
    data = content_of(unit)
    return data[3:] if unit.start == 0 and data.startswith(BOM) else data


# ---------------------------------------------------------------------------------------------- rows


def text_of(value: Any) -> str | BadRow:
    """A text that can be encoded, or what is wrong with it (row 0; the caller knows the number)."""
    if isinstance(value, BadRow):
        return value
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return BadRow(0, "lone surrogate")
        return value
    if value is MISSING:
        return BadRow(0, "no text key")
    return BadRow(0, "text is null" if value is None else f"text is {_kind_of(value)}, not a string")


def _kind_of(value: Any) -> str:
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def pick_text(row: Any, key: str) -> Any:
    """``row[key]``, MISSING, or a BadRow if the row is no object."""
    return (
        row.get(key, MISSING)
        if isinstance(row, dict)
        else BadRow(0, f"row is {_kind_of(row)}, not an object")
    )


def fields_of(row: Any, keys: tuple[str, ...]) -> tuple[Any, ...] | BadRow:
    """What ``row`` has for each of ``keys``, a text or a list of texts; a BadRow unless all are usable."""
    if not isinstance(row, dict):
        return BadRow(0, f"row is {_kind_of(row)}, not an object")
    return usable_fields(tuple([row.get(key, MISSING) for key in keys]), keys)


def usable_fields(values: tuple[Any, ...], keys: tuple[str, ...]) -> tuple[Any, ...] | BadRow:
    """``values`` if each is a text, or a list of texts, that can be encoded; else what is wrong with one."""
    for key, value in zip(keys, values, strict=True):
        for text in value if type(value) is list else (value,):
            found = text_of(text)
            if isinstance(found, BadRow):
                where = f" in {key!r}" if len(keys) > 1 else ""
                inside = " in a list" if type(value) is list else ""
                return BadRow(0, f"{found.reason}{inside}{where}")
    return values


def document_of(row: Any, options: ReadOptions) -> Any:
    """The document that a decoded row holds, as ``options`` has it, or a BadRow."""
    if options.lists:
        return fields_of(row, options.keys)
    return text_of(pick_text(row, options.text_key))


def _read_jsonl(unit: Unit, options: ReadOptions) -> Texts:
    if options.lists:
        return _read_jsonl_fields(unit, options)
    lines = _lines(_without_bom(unit))
    found = Texts([], rows=len(lines))
    key = options.text_key
    for row, line in enumerate(lines):
        if not line or line.isspace():
            continue
        try:
            value = from_json(line, cache_strings="keys")
            text = value[key] if type(value) is dict and key in value else pick_text(value, key)
            found.add(row, text if type(text) is str else text_of(text))
        except ValueError:
            found.add(row, _document_or_reason(line, row, options))
    return found


def _read_jsonl_fields(unit: Unit, options: ReadOptions) -> Texts:
    lines = _lines(_without_bom(unit))
    found = Texts([], rows=len(lines))
    key, usual = options.text_key, not options.more_keys
    for row, line in enumerate(lines):
        if not line or line.isspace():
            continue
        try:
            value = from_json(line, cache_strings="keys")
            if usual and type(value) is dict and type(text := value.get(key)) is str:
                found.texts.append((text,))
                found.numbers.append(row)
                continue
            found.add(row, fields_of(value, options.keys))
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


def _lines(data: bytes) -> list[bytes]:
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
    from automodel_cli.corpus import columns  # pyarrow costs a quarter second; JSONL does not pay it

    return columns.documents_of(columns.read_row_groups(unit, options), options)


def _read_rows(unit: Unit, options: ReadOptions) -> Texts:
    from automodel_cli.corpus import columns  # as above

    return columns.documents_of(columns.unpack(unit.payload), options)


# ---------------------------------------------------------------------------------------------- text


def _read_lines(unit: Unit, options: ReadOptions) -> Texts:
    """One document a line, without its line end; blank lines separate and are no documents."""
    lines = _lines(_without_bom(unit))
    found = Texts([], rows=len(lines))
    for row, line in enumerate(lines):
        if line and not line.isspace():
            _add_text(found, row, line.removesuffix(b"\r"))
    return found


def _read_delimited(unit: Unit, options: ReadOptions) -> Texts:
    """The text between delimiters, untouched; nothing between two of them is no document."""
    parts = _without_bom(unit).split(options.document.encode())
    found = Texts([], rows=len(parts) - (not parts[-1]))
    for row, part in enumerate(parts):
        if part and not part.isspace():
            _add_text(found, row, part)
    return found


def _read_files(unit: Unit, options: ReadOptions) -> Texts:
    """Small files, each one document as it is; an empty one is no document."""
    found = Texts([])
    for number, (path, name) in enumerate(unit.payload):
        data = Path(path).read_bytes().removeprefix(BOM)
        if data:
            _add_text(found, number, data, name)
    return found


def _read_piece(unit: Unit, options: ReadOptions) -> Texts:
    """Part of a large text that is one document; the parent made sure that it is UTF-8."""
    return Texts([_without_bom(unit).decode()], numbers=[0])


def _read_bad(unit: Unit, options: ReadOptions) -> Texts:
    return Texts([], bad=[BadRow(0, unit.payload, unit.name)])


def _add_text(found: Texts, row: int, data: bytes, name: str | None = None) -> None:
    try:
        found.add(row, data.decode(), name)
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
