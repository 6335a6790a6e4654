"""Plain and compressed files (gz, bz2, xz, zst) as one kind of byte stream, where a file that stops early is an error.

A step gives a bounded number of bytes however well they were packed, and the window that a file asks for is bounded
too, so that 100 KB that stand for gigabytes are read in a few megabytes.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, Literal, cast

import zstandard

from automodel_cli.corpus.documents.inputs import open_input, read_input
from automodel_cli.errors import DataError

Compression = Literal["", "gz", "bz2", "xz", "zst"]
_INPUT_BYTES = 64 << 10
_SAMPLE_BYTES = 1 << 20  # of a compressed file, from its beginning
_USUAL_EXPANSION = 4.0  # of text
_BUFFER_BYTES = 1 << 20
_LEAST_WINDOW_BYTES = 8 << 20
DEFAULT_WINDOW_BYTES = 128 << 20  # what zstd itself reads unless told otherwise
_ZST_MAGIC = b"\x28\xb5\x2f\xfd"
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)
_SKIPPABLE = {bytes([0x50 + k]) + b"\x2a\x4d\x18" for k in range(16)}


def compression_of(head: bytes) -> Compression:
    """How a file that begins with ``head`` is compressed; "" if it is not."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"BZh") and head[4:10] in (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"):
        return "bz2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    return "zst" if head[:4] == _ZST_MAGIC or head[:4] in _SKIPPABLE else ""


def open_stream(path: str, compression: str, *, window_bytes: int = DEFAULT_WINDOW_BYTES) -> IO[bytes]:
    """The uncompressed bytes of a regular file from its start, with ``read`` and ``readline``.

    Args:
        window_bytes: how far back a compressed file may refer, which is memory that reading it takes.
    """
    raw = open_input(path)
    if compression == "":
        return raw
    window_bytes = max(_LEAST_WINDOW_BYTES, window_bytes)
    if compression == "gz":
        # Closing GzipFile does not close a file that it was given; the buffer does, by the reader's own close.
        return cast(IO[bytes], io.BufferedReader(_Gz(raw), buffer_size=_BUFFER_BYTES))
    if compression == "zst":
        return io.BufferedReader(_Zst(raw, window_bytes), buffer_size=_BUFFER_BYTES)
    return io.BufferedReader(_Blocks(raw, compression, window_bytes), buffer_size=_BUFFER_BYTES)


def first_bytes(path: str, name: str, compression: str, count: int) -> bytes:
    """The first uncompressed bytes, as far as they can be had.

    Raises:
        DataError: the system cannot read the file.
    """
    with stream_errors(name):
        if not compression:
            return read_input(path, 0, count)
        head = b""
        with contextlib.suppress(*_DAMAGE, OSError, DataError), open_stream(path, compression) as stream:
            while len(head) < count and (piece := stream.read1(count - len(head))):  # type: ignore[attr-defined]
                head += piece
        return head


@contextlib.contextmanager
def stream_errors(name: str) -> Iterator[None]:
    """What can go wrong while ``name`` is read becomes one error that names it.

    Raises:
        DataError: damaged or cut off, not UTF-8 where text was decoded, or the system cannot read it.
    """
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{name} is damaged or cut off: {error}", "copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}", "convert it, or leave it out") from error
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}", "check the file") from error


def likely_expansion(path: str, name: str, compression: str) -> float:
    """Bytes that a compressed byte stands for: from the beginning of the file, or as usual where that says nothing.

    Raises:
        DataError: damaged or cut off, or the system cannot read it.
    """
    with stream_errors(name), open_stream(path, compression) as stream:
        plain = 0
        reader = cast(Any, stream).raw
        while reader.position < _SAMPLE_BYTES and plain < 64 * _SAMPLE_BYTES:
            piece = stream.read(_BUFFER_BYTES)
            if not piece:
                break
            plain += len(piece)
        return plain / reader.position if plain and reader.position else _USUAL_EXPANSION


class _Packed(io.RawIOBase):
    """What readers of compressed files share: bytes that are ready, handed on without copying the rest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ready = memoryview(b"")

    @property
    def position(self) -> int:
        """Compressed bytes that were taken in."""
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        out = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._ready:
            piece = self._next(len(out))
            if piece is None:
                return 0
            self._ready = memoryview(piece)
        count = min(len(out), len(self._ready))
        out[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self, most: int) -> bytes | None:
        """Some more bytes, perhaps none; None at the proper end of the file."""
        raise NotImplementedError

    def close(self) -> None:
        self._file.close()
        super().close()


class _Gz(_Packed):
    """All members of a .gz file, by the standard library."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")

    def _next(self, most: int) -> bytes | None:
        return self._gzip.read(most) or None


class _Blocks(_Packed):
    """All streams of a .bz2 or .xz file; the module's own reader of .xz takes as much memory as a file asks for."""

    def __init__(self, file: BinaryIO, compression: str, window_bytes: int) -> None:
        super().__init__(file)
        self._window_bytes = window_bytes

        def new_xz() -> Any:
            return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=window_bytes + (1 << 20))

        self._new: Callable[[], Any] = bz2.BZ2Decompressor if compression == "bz2" else new_xz
        self._decompressor: Any = None
        self._input = b""

    def _next(self, most: int) -> bytes | None:
        if (self._decompressor is None or self._decompressor.eof) and not self._begin():
            return None
        data, self._input = self._input, b""
        if self._decompressor.needs_input and not data:
            data = self._file.read(_INPUT_BYTES)
            if not data:
                raise EOFError("it ends inside a compressed stream")
        try:
            return self._decompressor.decompress(data, max_length=most)
        except lzma.LZMAError as error:
            if "limit" in str(error):
                raise _too_wide("more", self._window_bytes) from error
            raise
        except OSError as error:  # what bz2 calls damage
            raise EOFError(str(error)) from error

    def _begin(self) -> bool:
        """Go to the next stream; False if there is none. Zeros between streams are padding."""
        first = self._decompressor is None
        rest = b"" if first else self._decompressor.unused_data.lstrip(b"\0")
        while not rest:
            rest = self._file.read(_INPUT_BYTES)
            if not rest:
                return False
            rest = rest if first else rest.lstrip(b"\0")
        self._decompressor, self._input = self._new(), rest
        return True


class _Zst(_Packed):
    """All frames of a .zst file, block by block (RFC 8878), as a block gives 128 KiB at most.

    zstandard's own readers either call a cut-off file finished or give all at once that a piece of input stands for.

    | frame       | bytes                                                                                  |
    |-------------|----------------------------------------------------------------------------------------|
    | magic       | 4: ``28 b5 2f fd``; ``5x 2a 4d 18``, then a uint32: that many bytes are to be skipped  |
    | descriptor  | 1: bits 7-6 size of the content size, 5 single segment, 2 checksum, 1-0 dictionary     |
    | window      | 1, unless single segment                                                               |
    | dictionary  | 0, 1, 2 or 4                                                                           |
    | content size| 0 (1 if single segment), 2, 4 or 8                                                     |
    | blocks      | each 3: bit 0 last, bits 2-1 type, 21 bits of size; then its bytes (type 1: one byte)  |
    | checksum    | 4, if there is one                                                                     |
    """

    def __init__(self, file: BinaryIO, window_bytes: int) -> None:
        super().__init__(file)
        self._window_bytes = window_bytes
        self._frame: Any = None
        self._checksum = False

    def _next(self, most: int) -> bytes | None:
        if self._frame is None:
            return self._begin()
        head = self._take(3)
        bits = int.from_bytes(head, "little")
        last, kind, size = bits & 1, bits >> 1 & 3, bits >> 3
        data = head + self._take(1 if kind == 1 else size)
        if last and self._checksum:
            data += self._take(4)
        plain = self._frame.decompress(data)
        if last:
            self._frame = None
        return plain

    def _begin(self) -> bytes | None:
        """Go to the first block of the next frame; None if there is none."""
        magic = self._file.read(4)
        if not magic:
            return None
        if magic in _SKIPPABLE:
            left = int.from_bytes(self._take(4), "little")
            while left:
                left -= len(self._take(min(left, _INPUT_BYTES)))
            return b""
        if magic != _ZST_MAGIC:
            raise zstandard.ZstdError("no zstandard frame where one should begin")
        self._begin_frame(magic)
        return b""

    def _begin_frame(self, magic: bytes) -> None:
        descriptor = self._take(1)
        bits = descriptor[0]
        single, self._checksum = bool(bits & 0x20), bool(bits & 4)
        size_bytes = (int(single), 2, 4, 8)[bits >> 6]
        before = 0 if single else 1
        header = self._take(before + (0, 1, 2, 4)[bits & 3] + size_bytes)
        if single:
            content = int.from_bytes(header[-size_bytes:], "little")
            window = content + 256 * (size_bytes == 2)
        else:
            base = 1 << (10 + (header[0] >> 3))
            window = base + base // 8 * (header[0] & 7)
        if window > self._window_bytes:
            raise _too_wide(f"{window >> 20:,} MiB", self._window_bytes)
        self._frame = zstandard.ZstdDecompressor(max_window_size=max(window, 1 << 10)).decompressobj()
        self._frame.decompress(magic + descriptor + header)

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("it ends inside a compressed frame")
        return data


def _too_wide(window: str, allowed: int) -> OSError:
    return OSError(f"it needs a window of {window}, {allowed >> 20:,} MiB are allowed (half of --max-document-bytes)")
