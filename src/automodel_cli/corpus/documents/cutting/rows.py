"""Cuts JSON Lines, text by line and text by delimiter into ranges of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from automodel_cli.corpus.documents import compressed
from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.cutting.cut import Cut, skip
from automodel_cli.corpus.documents.inputs import pread
from automodel_cli.corpus.documents.units import Unit

PROBE_BYTES = 64 << 10  # read at a time while looking for a border
_BLOCK_BYTES = 1 << 20


def cut_lines(cut: Cut, at: int, kind: str) -> Iterator[Unit]:
    """Whole lines from byte ``at`` on, a chunk at a time; a long line is a unit of its own."""
    if cut.file.compression:
        yield from cut_delimited(cut, at, kind, b"\n")
        return
    end = cut.file.bytes if cut.stop is None else cut.stop
    with stream_errors(cut.file.name), compressed.open_stream(cut.file.path, "") as handle:
        while at < end:
            stop = after_line_end(handle, at + cut.chunk_bytes - 1, end)
            if cut.is_long(stop - at):  # the last line may be
                begin = at + pread(handle, cut.chunk_bytes - 1, at).rfind(b"\n") + 1
                if begin > at:
                    yield cut.unit(kind, at, start=at, stop=begin, size=begin - at)
                    at = begin
                if cut.is_long(stop - at):
                    ended = pread(handle, 1, stop - 1) == b"\n"
                    yield cut.lone(kind, at, stop - at, stop - at - ended)
                    at = stop
                    continue
            yield cut.unit(kind, at, start=at, stop=stop, size=stop - at)
            at = stop


def after_line_end(handle: IO[bytes], position: int, size: int) -> int:
    """The byte after the first line end at or after ``position``, or ``size``."""
    while position < size:
        block = pread(handle, PROBE_BYTES, position)
        if not block:
            break  # the file became shorter; the worker says so
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return size


def cut_delimited(cut: Cut, at: int, kind: str, delimiter: bytes) -> Iterator[Unit]:
    """Delimiters are taken from the left, without overlap, as ``bytes.split`` does over the whole file.

    A delimiter that overlaps itself (three newlines where two are meant) can only be placed by looking at
    all that comes before; so the file is scanned here once, at memory speed, and still read by the workers.
    """
    with stream_errors(cut.file.name), cut.open() as stream:
        skip(stream, at)
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


def _lone_delimited(cut: Cut, kind: str, at: int, held: bytearray, size: int, length: int) -> Unit:
    """The unit of the first ``size`` bytes of ``held``, which go."""
    payload = bytes(memoryview(held)[:size]) if cut.file.compression and length <= cut.max_bytes else None
    del held[:size]
    return cut.lone(kind, at, size, length, payload)


def _delimited(cut: Cut, kind: str, at: int, held: bytearray, size: int) -> Unit:
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
