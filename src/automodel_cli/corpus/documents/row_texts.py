"""What a decoded row holds: its text, or what is wrong with it. Readers of every kind of file ask here.

A reason is a ``BadRow`` of row 0; who knows the number of the row puts it in.
"""

from __future__ import annotations

from typing import Any

from automodel_cli.corpus.documents.units import BadRow, ReadOptions

NOT_UTF8 = "not UTF-8"
_MISSING = object()


def too_long(max_bytes: int) -> BadRow:
    """The reason for a document that is longer than ``max_bytes``."""
    return BadRow(0, f"longer than {max_bytes:,} bytes (--max-document-bytes)")


def text_of(value: Any) -> str | BadRow:
    """A text that can be encoded, or what is wrong with it."""
    if isinstance(value, BadRow):
        return value
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return BadRow(0, "lone surrogate")
        return value
    if value is _MISSING:
        return BadRow(0, "no text key")
    return BadRow(0, "text is null" if value is None else f"text is {_kind_of(value)}, not a string")


def _kind_of(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


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
    if not isinstance(row, dict):
        return BadRow(0, f"row is {_kind_of(row)}, not an object")
    if options.lists:
        return usable_fields(tuple([row.get(key, _MISSING) for key in options.keys]), options.keys)
    return text_of(row.get(options.text_key, _MISSING))
