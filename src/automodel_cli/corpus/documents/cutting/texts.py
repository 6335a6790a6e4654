"""Cuts texts that are one document each; a huge one in pieces, where a cut changes no token."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator
from typing import IO

import numpy as np

from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.cutting.cut import Cut, open_stream, skip
from automodel_cli.corpus.documents.cutting.rows import PROBE_BYTES
from automodel_cli.corpus.documents.inputs import pread
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.readers import BOM
from automodel_cli.corpus.documents.units import NOT_UTF8, ReadOptions, Split, Unit, too_long
from automodel_cli.errors import DataError


def cut_text(cut: Cut, at: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
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
    cut: Cut, window: _Window, start: int, begin: int, end: int, split: Split | None, cut_huge_texts: bool
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
        block = window.read(position - lead, min(PROBE_BYTES, end - position) + lead)
        for match in re.finditer(rb"[ \n]", block[lead:]):
            k = match.start() + lead
            before = block[max(0, k - 4) : k].decode(errors="ignore")[-1:]
            if before.isalpha() and (block[k] == 0x20 or before.isascii()):
                return position - lead + k
        position += PROBE_BYTES
    return None


class _Window:
    """Bytes of a file by position: anywhere in a plain one, forwards only in a compressed one."""

    def __init__(self, file: SourceFile, options: ReadOptions, start: int) -> None:
        self._sequential = bool(file.compression)
        self._stream = open_stream(file, options)
        self._base, self._held = start, bytearray()
        if self._sequential:
            skip(self._stream, start)

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, start: int, count: int) -> bytes:
        """The bytes from ``start`` on, which stay there."""
        if not self._sequential:
            return pread(self._stream, count, start)
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
