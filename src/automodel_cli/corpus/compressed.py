"""Plain, .gz and .zst files as one kind of byte stream, where a file that stops early is an error."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from automodel_cli.corpus.listing import SourceFile
from automodel_cli.errors import DataError

_INPUT_BYTES = 256 << 10


def open_stream(file: SourceFile) -> IO[bytes]:
    """The uncompressed bytes of ``file`` from its start, with ``read`` and ``readline``."""
    if file.compression == "gz":
        return cast(IO[bytes], gzip.open(file.path, "rb"))
    if file.compression == "zst":
        return io.BufferedReader(_ZstdStream(file.path), buffer_size=1 << 20)
    return Path(file.path).open("rb")


@contextlib.contextmanager
def stream_errors(name: str) -> Iterator[None]:
    """What can go wrong while ``name`` is read becomes one error that names it.

    Raises:
        DataError: damaged or cut off, not UTF-8 where text was decoded, or the system cannot read it.
    """
    try:
        yield
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is damaged or cut off: {error}", "copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}", "convert it, or leave it out") from error
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}", "check the file") from error


class _ZstdStream(io.RawIOBase):
    """All frames of a .zst file. zstandard's own reader calls a cut-off file finished; this one does not."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 (closed with the stream)
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._ready = b""
        self._input = b""
        self._in_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        out = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._ready:
            if not self._advance():
                return 0
        count = min(len(out), len(self._ready))
        out[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _advance(self) -> bool:
        """Decompress a little more; False at the proper end of the file."""
        self._input = self._input or self._file.read(_INPUT_BYTES)
        if not self._input:
            if self._in_frame:
                raise EOFError("it ends inside a compressed frame")
            return False
        self._in_frame = True
        self._ready = self._frame.decompress(self._input)
        self._input = b""
        if self._frame.eof:
            self._input = self._frame.unused_data
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._in_frame = False
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
