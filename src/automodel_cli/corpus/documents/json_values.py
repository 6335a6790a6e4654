"""The rows of a .json file: the items of an array, or values one after another, in any mixture, in bounded memory.

``[row, row] [row] row row`` are five rows: whoever joins exports gets all of them. A value that goes on beyond a block
is gathered by its brackets and quotes, and passed over where it is longer than a document may be.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from automodel_cli.corpus.documents.units import too_long
from automodel_cli.errors import DataError

_READ_BYTES = 64 << 10
_LONG_CHARACTERS = 1 << 20  # a value that does not end within so much is gathered
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_OUTSIDE = re.compile(r'["\[\]{}]')
_INSIDE = re.compile(r'["\\]')


def iter_json(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """Each row's value (a BadRow if it is longer than ``max_bytes``) and how long it is.

    Raises:
        DataError: malformed or cut off, after so many values.
        UnicodeDecodeError: not UTF-8.
    """
    return _Values(stream, name, max_bytes).rows()


class _Values:
    """``_text`` from ``_position`` on was read and is not yet passed."""

    def __init__(self, stream: IO[bytes], name: str, max_bytes: int) -> None:
        self._characters = codecs.getreader("utf-8")(stream)
        self._name, self._max_bytes = name, max_bytes
        self._text, self._position, self._ended = "", 0, False
        self._number = 0

    def rows(self) -> Iterator[tuple[Any, int]]:
        """The rows, in order."""
        self._more()
        self._text = self._text.removeprefix("\ufeff")
        in_array = False
        while self._go_to_next():
            mark = self._text[self._position]
            if mark == ("]" if in_array else "["):
                in_array = not in_array
                self._position += 1
            else:
                yield self._value()
                self._number += 1
        if in_array:
            raise self._malformed()

    def _more(self) -> None:
        """Forget what is passed and read on, twice as much where much is held."""
        held = len(self._text) - self._position
        block = self._characters.read(max(_READ_BYTES, held))
        self._text, self._position, self._ended = self._text[self._position :] + block, 0, not block

    def _go_to_next(self) -> bool:
        """Pass what stands between values; False at the end of the file."""
        while True:
            self._position = _BETWEEN.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text) or self._ended:
                return self._position < len(self._text)
            self._more()

    def _value(self) -> tuple[Any, int]:
        while True:
            value, end = _decode_or_none(self._text, self._position)
            if end is not None and (end < len(self._text) or self._ended):
                size = _size(self._text, self._position, end)
                self._position = end
                return (value if size <= self._max_bytes else too_long(self._max_bytes)), size
            if self._ended:
                raise self._malformed()
            if len(self._text) - self._position >= _LONG_CHARACTERS:
                return self._long_value()
            self._more()

    def _long_value(self) -> tuple[Any, int]:
        """A value whose end was not read yet."""
        nesting, pieces, size = _Nesting(), list[str](), 0
        text = self._text[self._position :]
        if text[0] not in '"[{':
            raise self._malformed()
        while (end := nesting.end_in(text)) is None:
            size += _size(text, 0, len(text))
            if size <= self._max_bytes:
                pieces.append(text)
            else:
                pieces.clear()
            text = self._characters.read(_LONG_CHARACTERS)
            if not text:
                raise self._malformed()
        size += _size(text, 0, end)
        self._text, self._position = text, end
        if size > self._max_bytes:
            return too_long(self._max_bytes), size
        pieces.append(text[:end])
        whole = "".join(pieces)
        del pieces, text
        value, stop = _decode_or_none(whole, 0)
        if stop != len(whole):
            raise self._malformed()
        return value, size

    def _malformed(self) -> DataError:
        return DataError(f"{self._name} is malformed or cut off after value {self._number}", "repair the file")


@dataclass
class _Nesting:
    """Where in a value a scan is."""

    depth: int = 0
    in_string: bool = False
    escaped: int = 0

    def end_in(self, text: str) -> int | None:
        """Where the value ends in the next piece of its text, or None."""
        position, self.escaped = self.escaped, 0
        while found := (_INSIDE if self.in_string else _OUTSIDE).search(text, position):
            position = found.end()
            if found[0] == "\\":
                position += 1
            elif found[0] == '"':
                self.in_string = not self.in_string
            else:
                self.depth += 1 if found[0] in "[{" else -1
            if self.depth <= 0 and not self.in_string:
                return position
        self.escaped = max(0, position - len(text))
        return None


_DECODE = json.JSONDecoder().raw_decode


def _decode_or_none(text: str, position: int) -> tuple[Any, int | None]:
    try:
        return _DECODE(text, position)
    except (ValueError, RecursionError):
        return None, None


def _size(text: str, start: int, stop: int) -> int:
    """Bytes of a part of a text."""
    return stop - start if text.isascii() else len(text[start:stop].encode("utf-8", "surrogatepass"))
