"""Cuts files into units at document borders. The borders move with the chunk size, the documents do not.

| what                          | where it is cut                                   | who reads the bytes          |
|-------------------------------|---------------------------------------------------|------------------------------|
| .jsonl, text by line          | after a line end                                  | worker (range)               |
| text by delimiter             | after a delimiter, scanned from the start         | worker (range)               |
| text, a document a file       | between files; a huge one between letter and space| worker                       |
| .parquet                      | between row groups                                | worker                       |
| .parquet, huge row groups     | every so many rows                                | parent, hands over           |
| .json (array or objects)      | between values                                    | parent, hands over           |
| anything compressed           | as above                                          | parent, hands over           |

A document much longer than a unit is a unit of its own (``Unit.alone``); one longer than ``max_document_bytes`` is
found by its borders, passed over without being held, and stands as a bad row in its place.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from automodel_cli.corpus.documents import compressed
from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.json_values import iter_json
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.readers import BOM
from automodel_cli.corpus.documents.units import (
    NOT_UTF8,
    BadRow,
    ReadOptions,
    Split,
    Unit,
    document_of,
    too_long,
)
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.corpus.documents.columns import RowGroup

_PROBE_BYTES = 64 << 10  # read at a time while looking for a border
_BLOCK_BYTES = 1 << 20
_MAX_FILES_A_UNIT = 4096
_BIG_ROW_GROUP = 8  # times the chunk: larger ones are read here and handed over in slices
_ALONE_BYTES = 16 << 20  # a document that is longer than this and than some chunks is a unit of its own
_ALONE_CHUNKS = 8
# Of a row group that is sliced, on average; a few rows may be much longer than the others.
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class _Cut:
    """What every cutter needs to know; ``stop`` is where to end before the file does, in bytes or row groups."""

    file: SourceFile
    index: int
    options: ReadOptions
    chunk_bytes: int
    stop: int | None = None

    def unit(self, kind: Any, at: int, **rest: Any) -> Unit:
        cursor = {"file": self.index, "at": at, **rest.pop("cursor", {})}
        return Unit(kind=kind, name=self.file.name, file=self.index, cursor=cursor, path=self.file.path, **rest)

    @property
    def max_bytes(self) -> int:
        return self.options.max_document_bytes

    def is_long(self, size: int) -> bool:
        """Whether a document of ``size`` bytes has a unit of its own."""
        return size > self.max_bytes or size > max(_ALONE_BYTES, _ALONE_CHUNKS * self.chunk_bytes)

    def open(self) -> IO[bytes]:
        return open_stream(self.file, self.options)

    def lone(self, kind: str, at: int, size: int, length: int, payload: bytes | None = None) -> Unit:
        """The unit of one row at ``at``: ``size`` bytes with its end, ``length`` without it."""
        if length > self.max_bytes:
            return self.unit("bad", at, payload=too_long(self.max_bytes).reason, size=size, rows=1)
        place = {"start": at, "stop": at + size, "size": size, "rows": 1}
        return self.unit(kind, at, alone=True, measured=True, payload=payload, **place)


def open_stream(file: SourceFile, options: ReadOptions) -> IO[bytes]:
    """The uncompressed bytes of a file; windows take at most half of what a document may."""
    return compressed.open_stream(file.path, file.compression, window_bytes=options.max_document_bytes // 2)


def cut_files(
    files: Sequence[SourceFile],
    options: ReadOptions,
    cursor: dict[str, Any],
    *,
    chunk_bytes: int,
    cut_huge_texts: bool,
    tail_from: int | None,
    stop_at: int | None = None,
) -> Iterator[Unit]:
    """The units of ``files`` from ``cursor`` (``{"file": number, "at": position in it}``) on.

    Args:
        stop_at: where to stop in the last of ``files``: after a line end (bytes), or a row group (their number).

    Raises:
        DataError: a file cannot be read to its end.
    """
    index, at, row = cursor["file"], cursor["at"], cursor.get("row", 0)
    while index < len(files):
        cut = _Cut(files[index], index, options, chunk_bytes, stop_at if index == len(files) - 1 else None)
        group = [] if at or tail_from is not None else small_group(files, index, options, chunk_bytes)
        if group:
            paths = [(file.path, file.name) for file in group]
            yield cut.unit("files", 0, payload=paths, size=sum(file.bytes for file in group))
            index += len(group)
            continue
        yield from _cut_one(cut, at, row, cut_huge_texts, tail_from)
        index, at, row = index + 1, 0, 0


def small_group(files: Sequence[SourceFile], first: int, options: ReadOptions, chunk_bytes: int) -> list[SourceFile]:
    """The files from number ``first`` on that make one unit: each of them one document, and not a large one."""
    largest = min(2 * chunk_bytes, options.max_document_bytes)

    def is_small(file: SourceFile) -> bool:
        whole = file.kind == "text" and options.document == "file" and not file.compression
        return whole and file.bytes <= largest and not file.not_text

    group: list[SourceFile] = []
    size = 0
    for file in files[first : first + _MAX_FILES_A_UNIT]:
        if not is_small(file) or (group and size + file.bytes > chunk_bytes):
            break
        group.append(file)
        size += file.bytes
    return group


def _cut_one(cut: _Cut, at: int, row: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
    file, document = cut.file, cut.options.document
    if file.not_text:
        return iter([cut.unit("bad", 0, payload=file.not_text, size=file.bytes)])
    if file.kind == "parquet":
        return _cut_parquet(cut, at, row)
    if file.kind == "jsonl" or (file.kind == "json" and is_json_lines(file, cut.options)):
        return _cut_lines(cut, at, "jsonl")
    if file.kind == "json":
        return _cut_json_values(cut, at)
    if document == "line":
        return _cut_lines(cut, at, "line")
    if document != "file":
        return _cut_delimited(cut, at, "delimited", document.encode())
    return _cut_text(cut, at, cut_huge_texts, tail_from)


# --------------------------------------------------------------------------------------------- lines


def _cut_lines(cut: _Cut, at: int, kind: str) -> Iterator[Unit]:
    if cut.file.compression:
        yield from _cut_delimited(cut, at, kind, b"\n")
        return
    end = cut.file.bytes if cut.stop is None else cut.stop
    with stream_errors(cut.file.name), compressed.open_stream(cut.file.path, "") as handle:
        while at < end:
            stop = after_line_end(handle, at + cut.chunk_bytes - 1, end)
            if cut.is_long(stop - at):  # the last line may be
                begin = at + os.pread(handle.fileno(), cut.chunk_bytes - 1, at).rfind(b"\n") + 1
                if begin > at:
                    yield cut.unit(kind, at, start=at, stop=begin, size=begin - at)
                    at = begin
                if cut.is_long(stop - at):
                    ended = os.pread(handle.fileno(), 1, stop - 1) == b"\n"
                    yield cut.lone(kind, at, stop - at, stop - at - ended)
                    at = stop
                    continue
            yield cut.unit(kind, at, start=at, stop=stop, size=stop - at)
            at = stop


def after_line_end(handle: IO[bytes], position: int, size: int) -> int:
    """The byte after the first line end at or after ``position``, or ``size``."""
    while position < size:
        block = os.pread(handle.fileno(), _PROBE_BYTES, position)
        if not block:
            break  # the file became shorter; the worker says so
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return size


def _skip(stream: IO[bytes], count: int) -> None:
    """Read and forget: a compressed stream has no other way to a position."""
    while count:
        block = stream.read(min(count, 8 << 20))
        if not block:
            raise EOFError("it became shorter")
        count -= len(block)


def _cut_delimited(cut: _Cut, at: int, kind: str, delimiter: bytes) -> Iterator[Unit]:
    """Delimiters are taken from the left, without overlap, as ``bytes.split`` does over the whole file.

    A delimiter that overlaps itself (three newlines where two are meant) can only be placed by looking at
    all that comes before; so the file is scanned here once, at memory speed, and still read by the workers.
    """
    with stream_errors(cut.file.name), cut.open() as stream:
        _skip(stream, at)
        held, searched = bytearray(), 0  # from a border on; no delimiter begins before ``searched``
        while True:
            block = stream.read(cut.chunk_bytes)
            held += block
            while (first := held.find(delimiter, searched)) >= 0 and cut.is_long(first + len(delimiter)):
                yield _lone_delimited(cut, kind, at, held, first + len(delimiter), first)
                at, searched = at + first + len(delimiter), 0
            if first >= 0 and (stop := _last_border(held, delimiter)):
                yield _delimited(cut, kind, at, held, stop)
                at += stop
            searched = max(0, len(held) - len(delimiter) + 1)
            if not block:
                break
            if len(held) > cut.max_bytes:
                size, length, held = _past_document(stream, held, delimiter)
                yield cut.lone(kind, at, size, length)
                at, searched = at + size, 0
        if cut.is_long(len(held)):
            yield _lone_delimited(cut, kind, at, held, len(held), len(held))
        elif held:
            yield _delimited(cut, kind, at, held, len(held))


def _lone_delimited(cut: _Cut, kind: str, at: int, held: bytearray, size: int, length: int) -> Unit:
    """The unit of the first ``size`` bytes of ``held``, which go."""
    payload = bytes(memoryview(held)[:size]) if cut.file.compression and length <= cut.max_bytes else None
    del held[:size]
    return cut.lone(kind, at, size, length, payload)


def _delimited(cut: _Cut, kind: str, at: int, held: bytearray, size: int) -> Unit:
    """The unit of whole documents at the beginning of ``held``, which go."""
    payload = bytes(memoryview(held)[:size]) if cut.file.compression else None
    del held[:size]
    return cut.unit(kind, at, start=at, stop=at + size, payload=payload, size=size)


def _past_document(stream: IO[bytes], held: bytearray, delimiter: bytes) -> tuple[int, int, bytearray]:
    """Read on to the end of a document that is too long: its size, its length without delimiter, what comes after."""
    before = 0
    while (found := held.find(delimiter)) < 0:
        drop = max(0, len(held) - len(delimiter) + 1)
        before += drop
        del held[:drop]
        block = stream.read(_BLOCK_BYTES)
        if not block:
            return before + len(held), before + len(held), bytearray()
        held += block
    whole = found + len(delimiter)
    return before + whole, before + found, held[whole:]


def _last_border(data: bytes | bytearray, delimiter: bytes) -> int:
    """The byte after the last delimiter, taking them from the left; 0 without one."""
    if len(delimiter) == 1:  # cannot overlap itself
        return data.rfind(delimiter) + 1
    return len(data) - len(data.split(delimiter)[-1])


# ---------------------------------------------------------------------------------------------- text


def _cut_text(cut: _Cut, at: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
    """One text that is one document, or two if its tail is for validation."""
    with stream_errors(cut.file.name):
        with cut.open() as stream:
            size, characters = _measure(stream)
        if characters is None:
            yield cut.unit("bad", 0, payload=NOT_UTF8, size=size)
            return
        documents: list[tuple[int, int, Split | None]] = [(0, size, None)]
        if tail_from is not None:
            with cut.open() as stream:
                border = _byte_of_character(stream, tail_from)
            documents = [(0, border, "train"), (border, size, "val")]
        if not cut_huge_texts and any(end - begin > cut.max_bytes for begin, end, _ in documents):
            yield cut.unit("bad", 0, payload=too_long(cut.max_bytes).reason, size=size)
            return
        with _Window(cut.file, cut.options, at) as window:
            for begin, end, split in documents:
                yield from _cut_document(cut, window, max(at, begin), begin, end, split, cut_huge_texts)


def _cut_document(
    cut: _Cut, window: _Window, start: int, begin: int, end: int, split: Split | None, cut_huge_texts: bool
) -> Iterator[Unit]:
    while start < end:
        stop = end
        if cut_huge_texts and end - start > 2 * cut.chunk_bytes:
            stop = _end_of_piece(window, start, start + cut.chunk_bytes, end, max(1, cut.max_bytes // 2))
        payload = window.take(start, stop - start) if cut.file.compression else None
        yield cut.unit(
            "piece",
            start,
            start=start,
            stop=stop,
            payload=payload,
            size=stop - start,
            alone=cut.is_long(stop - start),
            continues=start > begin,
            unfinished=stop < end,
            split=split,
        )
        payload, start = None, stop


def _end_of_piece(window: _Window, start: int, position: int, end: int, grid: int) -> int:
    """Where the piece from ``start`` ends: the first place from ``position`` on where a cut changes nothing.

    Text without such places is cut at multiples of ``grid`` from which there is none up to the next multiple: places
    that do not depend on how large pieces are. The ids at such a cut may be others than those of the uncut text.
    """
    for forced in range((start // grid + 1) * grid, position + 1, grid):
        if end - forced >= grid and not _border(window, start, forced, forced + grid):
            return window.character_start(forced)
    forced = -(-position // grid) * grid
    if end - forced < grid:
        return _border(window, start, position, end) or end
    return _border(window, start, position, forced + grid) or window.character_start(forced)


def _border(window: _Window, start: int, position: int, end: int) -> int | None:
    """The first place before ``end`` between a letter and a space (or, if ASCII, a newline), from ``position`` on."""
    while position < end:
        lead = min(4, position - start)  # bytes of the character before
        block = window.read(position - lead, min(_PROBE_BYTES, end - position) + lead)
        for match in re.finditer(rb"[ \n]", block[lead:]):
            k = match.start() + lead
            before = block[max(0, k - 4) : k].decode(errors="ignore")[-1:]
            if before.isalpha() and (block[k] == 0x20 or before.isascii()):
                return position - lead + k
        position += _PROBE_BYTES
    return None


class _Window:
    """Bytes of a file by position: anywhere in a plain one, forwards only in a compressed one."""

    def __init__(self, file: SourceFile, options: ReadOptions, start: int) -> None:
        self._sequential = bool(file.compression)
        self._stream = open_stream(file, options)
        self._base, self._held = start, bytearray()
        if self._sequential:
            _skip(self._stream, start)

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, start: int, count: int) -> bytes:
        """The bytes from ``start`` on, which stay there."""
        if not self._sequential:
            return os.pread(self._stream.fileno(), count, start)
        missing = start + count - self._base - len(self._held)
        if missing > 0:
            self._held += self._stream.read(missing)
        return bytes(memoryview(self._held)[start - self._base : start - self._base + count])

    def take(self, start: int, count: int) -> bytes:
        """The bytes from ``start`` on; they and what is before are forgotten."""
        if start - self._base == len(self._held) and self._sequential:  # nothing is held: no copy
            self._base, self._held = start + count, bytearray()
            return self._stream.read(count)
        data = self.read(start, count)
        del self._held[: start + count - self._base]
        self._base = start + count
        return data

    def character_start(self, position: int) -> int:
        """``position``, or the end of the character that it is in."""
        while (byte := self.read(position, 1)) and byte[0] & 0xC0 == 0x80:
            position += 1
        return position


def _measure(stream: IO[bytes]) -> tuple[int, int | None]:
    """Bytes and characters of a text; None characters if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, characters = 0, 0
    valid = True
    while block := stream.read(1 << 20):
        size += len(block)
        if valid:
            try:
                characters += len(decoder.decode(block))
            except UnicodeDecodeError:
                valid = False
    with contextlib.suppress(UnicodeDecodeError):
        decoder.decode(b"", final=True)
        return size, characters if valid else None
    return size, None


def count_characters(file: SourceFile, options: ReadOptions) -> int:
    """Characters of a text file, without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    with stream_errors(file.name), open_stream(file, options) as stream:
        marked = stream.read(len(BOM)) == BOM
    with stream_errors(file.name), open_stream(file, options) as stream:
        characters = _measure(stream)[1]
    if characters is None:
        raise DataError(f"{file.name} is not UTF-8", "convert it, or leave it out")
    return characters - marked


def _byte_of_character(stream: IO[bytes], index: int) -> int:
    """Where character number ``index`` (not counting a byte order mark) begins."""
    block = stream.read(1 << 20)
    position = len(BOM) if block.startswith(BOM) else 0
    block = block[position:]
    while block:
        begins = (np.frombuffer(block, dtype=np.uint8) & 0xC0) != 0x80  # not a continuation byte
        count = int(np.count_nonzero(begins))
        if index < count:
            return position + int(np.flatnonzero(begins)[index])
        index -= count
        position += len(block)
        block = stream.read(1 << 20)
    return position


# ---------------------------------------------------------------------------------------- JSON values


def is_json_lines(file: SourceFile, options: ReadOptions) -> bool:
    """Whether a .json file holds an object a line, as many do."""
    with stream_errors(file.name), open_stream(file, options) as stream:
        first = stream.readline(16 << 20)
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _cut_json_values(cut: _Cut, at: int) -> Iterator[Unit]:
    """JSON arrays, or objects one after another, decoded here and handed over as texts."""
    held: list[Any] = []
    size = 0
    with stream_errors(cut.file.name), cut.open() as stream:
        for number, (value, length) in enumerate(iter_json(stream, cut.file.name, cut.max_bytes)):
            if number < at:
                continue
            if held and cut.is_long(length):
                yield cut.unit("values", at, payload=held, size=size, rows=len(held))
                at, held, size = number, [], 0
            held.append(value if isinstance(value, BadRow) else document_of(value, cut.options))
            size += length
            del value
            if size >= cut.chunk_bytes:
                alone = cut.is_long(size)
                yield cut.unit("values", at, payload=held, size=size, rows=len(held), alone=alone)
                at, held, size = number + 1, [], 0
    if held:
        yield cut.unit("values", at, payload=held, size=size, rows=len(held))


# -------------------------------------------------------------------------------------------- parquet


def _cut_parquet(cut: _Cut, at: int, row: int) -> Iterator[Unit]:
    from automodel_cli.corpus.documents import columns  # pyarrow, which other kinds of files do not need

    file, options = cut.file, cut.options
    groups = columns.inspect_parquet(file.path, file.name, options)[: cut.stop]
    with columns.DictionaryProbe(file.path, file.name, options) as probe:
        while at < len(groups):
            longest = probe.longest(at, groups[at])
            if row or longest or groups[at].text_bytes > _BIG_ROW_GROUP * cut.chunk_bytes:
                yield from _slice_row_group(cut, at, row, groups[at], longest)
                at, row = at + 1, 0
                continue
            stop, size = at, 0
            while stop < len(groups) and (stop == at or size + groups[stop].text_bytes <= cut.chunk_bytes):
                if stop > at and probe.longest(stop, groups[stop]):
                    break
                size += groups[stop].text_bytes
                stop += 1
            rows = sum(group.rows for group in groups[at:stop])
            yield cut.unit("parquet", at, start=at, stop=stop, size=size, rows=rows)
            at = stop


def _slice_row_group(cut: _Cut, at: int, row: int, group: RowGroup, longest: int) -> Iterator[Unit]:
    """Some rows at a time, about a chunk of text; a long document is a unit of its own.

    ``longest``: bytes of a value that any number of rows may repeat, 0 where that cannot be much.
    """
    from automodel_cli.corpus.documents import columns  # as above

    file, options = cut.file, cut.options
    rows = max(1, min(_BATCH_ROWS, group.rows * min(cut.chunk_bytes, _BATCH_BYTES) // max(1, group.text_bytes)))
    folded = longest > 0 and group.values > group.rows
    if longest:
        rows = max(1, min(rows, options.max_document_bytes // (4 * longest)))
    first = 0
    for table in columns.iter_row_group(file.path, file.name, options, at, rows, folded=folded):
        sizes = columns.row_bytes(table, options.keys)
        begin = max(0, row - first)
        while begin < len(table):
            ends = np.cumsum(sizes[begin:])
            stop = begin + max(1, int(np.searchsorted(ends, cut.chunk_bytes, side="right")))
            yield _rows_unit(cut, at, first + begin, table.slice(begin, stop - begin), int(ends[stop - begin - 1]))
            begin = stop
        first += len(table)


def _rows_unit(cut: _Cut, at: int, row: int, table: Any, size: int) -> Unit:
    from automodel_cli.corpus.documents import columns  # as above

    cursor, rows = {"row": row}, len(table)
    if rows == 1 and size > cut.max_bytes:
        return cut.unit("bad", at, cursor=cursor, payload=too_long(cut.max_bytes).reason, size=size, rows=1)
    payload = columns.pack(columns.unfolded(table))
    return cut.unit("rows", at, cursor=cursor, payload=payload, size=size, rows=rows, alone=cut.is_long(size))
