"""From a unit to the rows that a shuffle moves: lines of JSON as bytes, not parsed where that is not asked for.

Lines of .jsonl files are taken as they are, other columns, spacing and line ends included; the newline that the last
one may lack is added. Texts and rows of other files become ``{"text": ...}`` (the key is the text key), with the
columns that are carried. Blank lines are no rows.

Unless ``check`` is asked for, a line is only looked at from both ends: what does not begin with ``{`` and end with
``}`` is no JSON object, hence a bad row for every reader. With it, each row must have a usable text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import xxhash

from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.inputs import read_input
from automodel_cli.corpus.documents.readers import BOM, content_of, most_bytes, read_unit
from automodel_cli.corpus.documents.units import BadRow, ReadOptions, Texts, Unit, too_long
from automodel_cli.corpus.shuffle.packed_rows import Rows
from automodel_cli.errors import DataError
from automodel_cli.json_files import open_to_read
from automodel_cli.storage.urls import is_remote

_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"
_PIECE_CHARACTERS = 4 << 20
_DIGEST = np.dtype([("low", "<u8"), ("high", "<u8")])


@dataclass(frozen=True)
class RowOptions:
    """What is done with rows besides moving them.

    Attributes:
        read: how text is found; ``read.carried`` names columns of parquet files to keep.
        check: parse lines of JSON and leave out those without usable text.
        digest: also hash each text, to find equal ones.
        texts: also hand on each text.
    """

    read: ReadOptions
    check: bool = False
    digest: bool = False
    texts: bool = False

    @property
    def parses(self) -> bool:
        """Whether lines of JSON have to be parsed."""
        return self.check or self.digest or self.texts


@dataclass
class RowBlock:
    """The rows of one unit.

    Attributes:
        data: uint8, one row after another, each with its newline.
        lengths: bytes of each row, int64.
        numbers: the number of each row in the unit (in a run of small files: the file), int64.
        digests: 128 bits of each text, if asked for.
        texts: the texts themselves, if asked for.
        rows, bad: how many rows were looked at, and which of them were left out.
    """

    data: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    digests: np.ndarray | None = None
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    texts: list[str] | None = None


class RowReader:
    """Finds the rows of units.

    The memory for lines that are only moved is used again: a block's ``data`` is good until the next but one call.
    """

    def __init__(self, options: RowOptions) -> None:
        self._options = options
        self._buffers = [np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.uint8)]
        self._mask = np.empty(0, dtype=bool)

    def __call__(self, unit: Unit) -> RowBlock:
        """The rows of ``unit``, in order.

        Raises:
            DataError: the file cannot be read.
        """
        if unit.kind != "jsonl":
            return _rendered_rows(unit, self._options)
        if self._options.parses:
            return _parsed_lines(unit, self._options)
        return self._lines(unit)

    def _lines(self, unit: Unit) -> RowBlock:
        if unit.alone:
            return self._line_alone(unit)
        values = self._content(unit)
        if unit.start == 0 and values[: len(BOM)].tobytes() == BOM:
            values = values[len(BOM) :]
        if len(self._mask) < len(values):
            self._mask = np.empty(len(values), dtype=bool)
        ends = np.flatnonzero(np.equal(values, _NEWLINE, out=self._mask[: len(values)])) + 1
        lengths = np.diff(ends, prepend=0)
        good, bad = _look_at_ends(values, ends, lengths, most_bytes(unit, self._options.read))
        block = RowBlock(values, lengths, good, None, len(ends), bad)
        return block if len(good) == len(ends) else _only(block)

    def _line_alone(self, unit: Unit) -> RowBlock:
        """A long line, in memory of its own that is given back."""
        values = _with_newline(unit, content_of(unit))
        lengths = np.array([len(values)])
        good, bad = _look_at_ends(values, lengths, lengths, len(values))
        return RowBlock(values, lengths[good], good, None, 1, bad)

    def _content(self, unit: Unit) -> np.ndarray:
        """The bytes of a unit, with a newline at the end."""
        if unit.payload is not None:
            return np.frombuffer(_ended(unit.payload), dtype=np.uint8)
        if is_remote(unit.path):
            return np.frombuffer(_ended(content_of(unit)), dtype=np.uint8)
        size = unit.stop - unit.start
        self._buffers.reverse()
        if len(self._buffers[0]) <= size:
            self._buffers[0] = np.empty(size + 1, dtype=np.uint8)
        buffer = self._buffers[0]
        with stream_errors(unit.name), open_to_read(unit.path, buffering=0) as handle:
            handle.seek(unit.start)
            done = 0
            while done < size and (count := handle.readinto(buffer[done:size].data)):  # type: ignore[attr-defined]
                done += count
        if done < size:
            raise DataError(f"{unit.name} became shorter while it was read", "run the command again")
        buffer[size] = _NEWLINE
        return buffer[: size + (size > 0 and buffer[size - 1] != _NEWLINE)]


def _ended(data: bytes) -> bytes:
    return data if not data or data.endswith(b"\n") else data + b"\n"


def _with_newline(unit: Unit, content: bytes) -> np.ndarray:
    """The bytes of a unit without a byte order mark, with a newline at the end; no copy where they have one."""
    values = np.frombuffer(_ended(content), dtype=np.uint8)
    return values[len(BOM) :] if unit.start == 0 and content.startswith(BOM) else values


def _only(block: RowBlock) -> RowBlock:
    """``block`` with the rows of its ``numbers`` alone."""
    block.data = Rows(block.data, block.lengths).take(block.numbers)
    block.lengths = block.lengths[block.numbers]
    return block


def _rendered_rows(unit: Unit, options: RowOptions) -> RowBlock:
    found = read_unit(unit, options.read)
    rows = _rendered(unit, found, options.read)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return _block(np.frombuffer(b"".join(rows), dtype=np.uint8), lengths, found, options)


def _parsed_lines(unit: Unit, options: RowOptions) -> RowBlock:
    content = content_of(unit)
    found = read_unit(replace(unit, payload=content), options.read)
    values = _with_newline(unit, content)
    if unit.alone:
        lengths = np.array([len(values)])
    else:
        lengths = np.diff(np.flatnonzero(values == _NEWLINE) + 1, prepend=0)
    block = _block(values, lengths, found, options)
    return block if len(block.numbers) == len(lengths) else _only(block)


def _block(data: np.ndarray, lengths: np.ndarray, found: Texts, options: RowOptions) -> RowBlock:
    digests = digests_of(found.texts) if options.digest else None
    numbers = np.array(found.numbers, dtype=np.int64)
    return RowBlock(data, lengths, numbers, digests, found.rows, found.bad, found.texts if options.texts else None)


def digests_of(texts: list[str]) -> np.ndarray:
    """XXH3 (128 bits) of the UTF-8 of each text, as two uint64."""
    return np.frombuffer(b"".join([_digest(text) for text in texts]), dtype=_DIGEST)


def _digest(text: str) -> bytes:
    if len(text) <= _PIECE_CHARACTERS:
        return xxhash.xxh3_128_digest(text.encode())
    pieces = xxhash.xxh3_128()  # a long text is not encoded as a whole
    for first in range(0, len(text), _PIECE_CHARACTERS):
        pieces.update(text[first : first + _PIECE_CHARACTERS].encode())
    return pieces.digest()


def _look_at_ends(
    values: np.ndarray, ends: np.ndarray, lengths: np.ndarray, most: int
) -> tuple[np.ndarray, list[BadRow]]:
    """The numbers of the lines that look like JSON objects; those that are neither that nor blank, or too long."""
    if not len(ends):
        return np.zeros(0, dtype=np.int64), []
    last = values[ends - 2]
    last = np.where(last == _RETURN, values[np.maximum(ends - 3, 0)], last)
    usual = (values[ends - lengths] == _OPEN) & (last == _CLOSE) & (lengths <= most + 1)
    bad: list[BadRow] = []
    for number in np.flatnonzero(~usual).tolist():
        if lengths[number] > most + 1:
            bad.append(replace(too_long(most), row=number))
            continue
        line = values[ends[number] - lengths[number] : ends[number]].tobytes().strip()
        usual[number] = line.startswith(b"{") and line.endswith(b"}")
        if line and not usual[number]:
            bad.append(BadRow(number, "not a JSON object"))
    return np.flatnonzero(usual), bad


# ------------------------------------------------------------------------------------------- rendering


def _rendered(unit: Unit, found: Texts, read: ReadOptions) -> list[bytes]:
    """Each document as a line of JSON."""
    if read.carried and unit.kind in ("parquet", "rows"):
        return _with_columns(unit, found, read)
    if read.lists:
        return [_as_json(dict(zip(read.keys, values, strict=True))) for values in found.texts]
    start = f"{{{encode_basestring(read.text_key)}: "
    return [f"{start}{encode_basestring(text)}}}\n".encode() for text in found.texts]


def _with_columns(unit: Unit, found: Texts, read: ReadOptions) -> list[bytes]:
    from automodel_cli.corpus.documents import columns  # pyarrow.parquet, which lines of JSON do not need

    table = columns.unpack(unit.payload) if unit.kind == "rows" else columns.read_row_groups(unit, read)
    names = read.columns[len(read.keys) :]
    carried = columns.carried_values(table, names)
    lines = []
    for number, document in zip(found.numbers, found.texts, strict=True):
        texts = document if read.lists else (document,)
        row = dict(zip(read.keys, texts, strict=True)) | dict(zip(names, carried[number], strict=True))
        lines.append(_as_json(row))
    return lines


def _as_json(row: dict[str, Any]) -> bytes:
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # JSON has no word for NaN and infinity
        line = json.dumps(_without_nan(row), ensure_ascii=False, default=_plain)
    return f"{line}\n".encode()


def _plain(value: Any) -> Any:
    """What JSON does not know: bytes as text, dates in ISO form, everything else as it prints."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# -------------------------------------------------------------------------------------------- counting


def count_rows(unit: Unit, read: ReadOptions) -> int:
    """How many rows ``RowReader`` would look at; as quick as memory where it must read at all.

    The content counts as far as it is there; whoever reads it in earnest says what is wrong with it.
    """
    if unit.rows is not None or unit.kind not in ("jsonl", "line", "delimited"):
        return unit.rows or 0
    data = unit.payload
    if data is None:
        data = read_input(unit.path, unit.start, unit.stop - unit.start)
    if unit.kind == "delimited":
        found = data.split(read.document.encode())
        return len(found) - (not found[-1])
    values = np.frombuffer(data, dtype=np.uint8)
    return int(np.count_nonzero(values == _NEWLINE)) + bool(data and not data.endswith(b"\n"))
