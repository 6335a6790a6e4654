"""What every cutter of files is given: a file, where to stop, and how large a unit is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

from automodel_cli.corpus.documents import compressed
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.units import ReadOptions, Unit, too_long

_ALONE_BYTES = 16 << 20  # a document that is longer than this and than some chunks is a unit of its own
_ALONE_CHUNKS = 8


@dataclass(frozen=True)
class Cut:
    """What every cutter needs to know; ``stop`` is where to end before the file does, in bytes or row groups."""

    file: SourceFile
    index: int
    options: ReadOptions
    chunk_bytes: int
    stop: int | None = None

    def unit(self, kind: Any, at: int, **rest: Any) -> Unit:
        """What begins at ``at``; ``rest`` are fields of ``Unit``."""
        cursor = {"file": self.index, "at": at, **rest.pop("cursor", {})}
        return Unit(kind=kind, name=self.file.name, file=self.index, cursor=cursor, path=self.file.path, **rest)

    @property
    def max_bytes(self) -> int:
        """The longest document that is read."""
        return self.options.max_document_bytes

    def is_long(self, size: int) -> bool:
        """Whether a document of ``size`` bytes has a unit of its own."""
        return size > self.max_bytes or size > max(_ALONE_BYTES, _ALONE_CHUNKS * self.chunk_bytes)

    def open(self) -> IO[bytes]:
        """The uncompressed bytes of the file."""
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


def skip(stream: IO[bytes], count: int) -> None:
    """Read and forget: a compressed stream has no other way to a position."""
    while count:
        block = stream.read(min(count, 8 << 20))
        if not block:
            raise EOFError("it became shorter")
        count -= len(block)
