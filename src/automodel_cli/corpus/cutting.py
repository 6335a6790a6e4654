"""Cuts files into units at document borders. The borders move with the chunk size, the documents do not.

| what                          | where it is cut                                   | who reads the bytes          |
|-------------------------------|---------------------------------------------------|------------------------------|
| .jsonl, text by line          | after a line end                                  | worker (range)               |
| text by delimiter             | after a delimiter, scanned from the start         | worker (range)               |
| text, a document a file       | between files; a huge one between letter and space| worker                       |
| .parquet                      | between row groups                                | worker                       |
| .parquet, huge row groups     | every so many rows                                | parent, hands over           |
| .json (array or objects)      | between values                                    | parent, hands over           |
| anything .gz or .zst          | as above                                          | parent, hands over           |
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from automodel_cli.corpus.compressed import open_stream, stream_errors
from automodel_cli.corpus.listing import SourceFile
from automodel_cli.corpus.readers import BOM, NOT_UTF8, document_of
from automodel_cli.corpus.units import ReadOptions, Split, Unit
from automodel_cli.errors import DataError

if TYPE_CHECKING:
    from automodel_cli.corpus.columns import RowGroup

_PROBE_BYTES = 64 << 10  # read at a time while looking for a border
_MAX_FILES_A_UNIT = 4096
_BIG_ROW_GROUP = 8  # times the chunk: larger ones are read here and handed over in slices


@dataclass(frozen=True)
class _Cut:
    """What every cutter needs to know."""

    file: SourceFile
    index: int
    options: ReadOptions
    chunk_bytes: int

    def unit(self, kind: Any, at: int, **rest: Any) -> Unit:
        cursor = {"file": self.index, "at": at, **rest.pop("cursor", {})}
        return Unit(
            kind=kind, name=self.file.name, file=self.index, cursor=cursor, path=self.file.path, **rest
        )


def cut_files(
    files: Sequence[SourceFile],
    options: ReadOptions,
    cursor: dict[str, Any],
    *,
    chunk_bytes: int,
    cut_huge_texts: bool,
    tail_from: int | None,
) -> Iterator[Unit]:
    """The units of ``files`` from ``cursor`` (``{"file": number, "at": position in it}``) on.

    Raises:
        DataError: a file cannot be read to its end.
    """
    index, at, row = cursor["file"], cursor["at"], cursor.get("row", 0)
    huge = 2 * chunk_bytes

    def is_small(file: SourceFile) -> bool:
        whole = file.kind == "text" and options.document == "file" and not file.compression
        return whole and tail_from is None and (file.bytes <= huge or not cut_huge_texts)

    while index < len(files):
        cut = _Cut(files[index], index, options, chunk_bytes)
        if at == 0 and is_small(files[index]):
            group = _small_group(files[index:], is_small, chunk_bytes)
            paths = [(file.path, file.name) for file in group]
            yield cut.unit("files", 0, payload=paths, size=sum(file.bytes for file in group))
            index += len(group)
            continue
        yield from _cut_one(cut, at, row, cut_huge_texts, tail_from)
        index, at, row = index + 1, 0, 0


def _small_group(files: Sequence[SourceFile], is_small: Any, chunk_bytes: int) -> list[SourceFile]:
    group: list[SourceFile] = []
    size = 0
    for file in files[:_MAX_FILES_A_UNIT]:
        if not is_small(file) or (group and size + file.bytes > chunk_bytes):
            break
        group.append(file)
        size += file.bytes
    return group


def _cut_one(cut: _Cut, at: int, row: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
    file, document = cut.file, cut.options.document
    if file.kind == "parquet":
        return _cut_parquet(cut, at, row)
    if file.kind == "jsonl" or (file.kind == "json" and _is_json_lines(file)):
        return _cut_lines(cut, at, "jsonl")
    if file.kind == "json":
        return _cut_json_values(cut, at)
    if document == "line":
        return _cut_lines(cut, at, "line")
    if document != "file":
        return _cut_delimited(cut, at, document.encode())
    return _cut_text(cut, at, cut_huge_texts, tail_from)


# --------------------------------------------------------------------------------------------- lines


def _cut_lines(cut: _Cut, at: int, kind: str) -> Iterator[Unit]:
    if cut.file.compression:
        yield from _hand_over_lines(cut, at, kind)
        return
    with stream_errors(cut.file.name), Path(cut.file.path).open("rb") as handle:
        while at < cut.file.bytes:
            stop = _after_line_end(handle, at + cut.chunk_bytes - 1, cut.file.bytes)
            yield cut.unit(kind, at, start=at, stop=stop, size=stop - at)
            at = stop


def _after_line_end(handle: IO[bytes], position: int, size: int) -> int:
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


def _hand_over_lines(cut: _Cut, at: int, kind: str) -> Iterator[Unit]:
    with stream_errors(cut.file.name), open_stream(cut.file) as stream:
        _skip(stream, at)
        while block := stream.read(cut.chunk_bytes):
            if not block.endswith(b"\n"):
                block += stream.readline()
            yield cut.unit(kind, at, start=at, payload=block, size=len(block))
            at += len(block)


def _skip(stream: IO[bytes], count: int) -> None:
    """Read and forget: a compressed stream has no other way to a position."""
    while count:
        block = stream.read(min(count, 8 << 20))
        if not block:
            raise EOFError("it became shorter")
        count -= len(block)


def _cut_delimited(cut: _Cut, at: int, delimiter: bytes) -> Iterator[Unit]:
    """Delimiters are taken from the left, without overlap, as ``bytes.split`` does over the whole file.

    A delimiter that overlaps itself (three newlines where two are meant) can only be placed by looking at
    all that comes before; so the file is scanned here once, at memory speed, and still read by the workers.
    """
    with stream_errors(cut.file.name), open_stream(cut.file) as stream:
        _skip(stream, at)
        held = b""
        while True:
            block = stream.read(max(cut.chunk_bytes, len(held)))
            held += block
            stop = _last_border(held, delimiter) if block else len(held)
            if stop:
                payload = held[:stop] if cut.file.compression else None
                yield cut.unit("delimited", at, start=at, stop=at + stop, payload=payload, size=stop)
                at, held = at + stop, held[stop:]
            if not block:
                return


def _last_border(data: bytes, delimiter: bytes) -> int:
    """The byte after the last delimiter, taking them from the left; 0 without one."""
    return len(data) - len(data.split(delimiter)[-1])


# ---------------------------------------------------------------------------------------------- text


def _cut_text(cut: _Cut, at: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
    """One text that is one document, or two if its tail is for validation."""
    with stream_errors(cut.file.name):
        with open_stream(cut.file) as stream:
            size, characters = _measure(stream)
        if characters is None:
            yield cut.unit("bad", 0, payload=NOT_UTF8, size=size)
            return
        documents: list[tuple[int, int, Split | None]] = [(0, size, None)]
        if tail_from is not None:
            with open_stream(cut.file) as stream:
                border = _byte_of_character(stream, tail_from)
            documents = [(0, border, "train"), (border, size, "val")]
        with _Window(cut.file, at) as window:
            for begin, end, split in documents:
                yield from _cut_document(cut, window, max(at, begin), begin, end, split, cut_huge_texts)


def _cut_document(
    cut: _Cut, window: _Window, start: int, begin: int, end: int, split: Split | None, cut_huge_texts: bool
) -> Iterator[Unit]:
    while start < end:
        stop = end
        if cut_huge_texts and end - start > 2 * cut.chunk_bytes:
            stop = _letter_before_space(window, start, start + cut.chunk_bytes, end)
        yield cut.unit(
            "piece",
            start,
            start=start,
            stop=stop,
            payload=window.read(start, stop - start) if cut.file.compression else None,
            size=stop - start,
            continues=start > begin,
            unfinished=stop < end,
            split=split,
        )
        start = stop
        window.forget_before(start)


def _letter_before_space(window: _Window, start: int, position: int, end: int) -> int:
    """The first place from ``position`` on between a letter and a space (or, if ASCII, a newline), or ``end``."""
    while position < end:
        lead = min(4, position - start)  # bytes of the character before
        block = window.read(position - lead, min(_PROBE_BYTES, end - position) + lead)
        for match in re.finditer(rb"[ \n]", block[lead:]):
            k = match.start() + lead
            before = block[max(0, k - 4) : k].decode(errors="ignore")[-1:]
            if before.isalpha() and (block[k] == 0x20 or before.isascii()):
                return position - lead + k
        position += _PROBE_BYTES
    return end


class _Window:
    """Bytes of a file by position: anywhere in a plain one, forwards only in a compressed one."""

    def __init__(self, file: SourceFile, start: int) -> None:
        self._sequential = bool(file.compression)
        self._stream = open_stream(file)
        self._base, self._held = start, b""
        if self._sequential:
            _skip(self._stream, start)

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, start: int, count: int) -> bytes:
        if not self._sequential:
            return os.pread(self._stream.fileno(), count, start)
        missing = start + count - self._base - len(self._held)
        if missing > 0:
            self._held += self._stream.read(missing)
        return self._held[start - self._base : start - self._base + count]

    def forget_before(self, position: int) -> None:
        drop = position - self._base
        self._base, self._held = position, self._held[drop:]


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


def count_characters(file: SourceFile) -> int:
    """Characters of a text file, without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    with stream_errors(file.name), open_stream(file) as stream:
        marked = stream.read(len(BOM)) == BOM
    with stream_errors(file.name), open_stream(file) as stream:
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


def _is_json_lines(file: SourceFile) -> bool:
    """Whether a .json file holds an object a line, as many do."""
    with stream_errors(file.name), open_stream(file) as stream:
        first = stream.readline(16 << 20)
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _cut_json_values(cut: _Cut, at: int) -> Iterator[Unit]:
    """A JSON array, or objects one after another, decoded here and handed over as texts."""
    held: list[Any] = []
    size = 0
    with stream_errors(cut.file.name), open_stream(cut.file) as stream:
        for number, (value, length) in enumerate(_iter_json(stream, cut.file.name)):
            if number < at:
                continue
            held.append(document_of(value, cut.options))
            size += length
            if size >= cut.chunk_bytes:
                yield cut.unit("values", at, payload=held, size=size, rows=len(held))
                at, held, size = number + 1, [], 0
    if held:
        yield cut.unit("values", at, payload=held, size=size, rows=len(held))


def _iter_json(stream: IO[bytes], name: str) -> Iterator[tuple[Any, int]]:
    """Values and their lengths in characters, holding one value and one block in memory."""
    decode = json.JSONDecoder().raw_decode
    characters = codecs.getreader("utf-8")(stream)
    text = characters.read(_PROBE_BYTES).removeprefix("\ufeff").lstrip()
    in_array = text.startswith("[")
    position, number, ended = int(in_array), 0, not text
    while True:
        position = _skip_between(text, position)
        if in_array and text[position : position + 1] == "]":
            return
        value, end = _decode_or_none(decode, text, position)
        if end is not None and (end < len(text) or ended):
            yield value, end - position
            position, number = end, number + 1
        elif not ended:  # the value may go on beyond what was read
            more = characters.read(max(_PROBE_BYTES, len(text) - position))
            text, position, ended = text[position:] + more, 0, not more
        elif position == len(text) and not in_array:
            return
        else:
            raise DataError(f"{name} is malformed or cut off after value {number}", "repair the file")


def _decode_or_none(decode: Any, text: str, position: int) -> tuple[Any, int | None]:
    try:
        return decode(text, position)
    except (ValueError, RecursionError):
        return None, None


def _skip_between(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


# -------------------------------------------------------------------------------------------- parquet


def _cut_parquet(cut: _Cut, at: int, row: int) -> Iterator[Unit]:
    from automodel_cli.corpus import columns  # pyarrow costs a quarter second; other kinds do not pay it

    groups = columns.inspect_parquet(cut.file.path, cut.file.name, cut.options)
    while at < len(groups):
        if row or groups[at].text_bytes > _BIG_ROW_GROUP * cut.chunk_bytes:
            yield from _slice_row_group(cut, at, row, groups[at])
            at, row = at + 1, 0
            continue
        stop, size = at, 0
        while stop < len(groups) and (stop == at or size + groups[stop].text_bytes <= cut.chunk_bytes):
            size += groups[stop].text_bytes
            stop += 1
        rows = sum(group.rows for group in groups[at:stop])
        yield cut.unit("parquet", at, start=at, stop=stop, size=size, rows=rows)
        at = stop


def _slice_row_group(cut: _Cut, at: int, row: int, group: RowGroup) -> Iterator[Unit]:
    from automodel_cli.corpus import columns  # as above

    file = cut.file
    rows = max(1, group.rows * cut.chunk_bytes // group.text_bytes)
    first = 0
    for table in columns.iter_row_group(file.path, file.name, cut.options, at, rows):
        stop = first + len(table)
        if stop > row:
            begin = max(row, first)
            size = group.text_bytes * (stop - begin) // group.rows
            payload = columns.pack(table.slice(begin - first))
            cursor = {"row": begin}
            yield cut.unit("rows", at, cursor=cursor, payload=payload, size=size, rows=stop - begin)
        first = stop
