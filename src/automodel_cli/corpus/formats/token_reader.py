"""Random access to the tokens of one file, here or remote.

Shapes: tokens are one-dimensional, in the dtype of the file; positions count tokens.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import TokenFile
from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes
from automodel_cli.storage.cache.remote_file import RemoteFile

_SAMPLE_BYTES = 4096
_log = logging.getLogger(__name__)


def _sample_hash(watched: WatchedFile) -> str:
    """Of the head, the middle and the tail."""
    count = min(_SAMPLE_BYTES, watched.num_bytes)
    starts = (0, (watched.num_bytes - count) // 2, watched.num_bytes - count)
    return hash_bytes(b"".join(os.pread(watched.descriptor, count, start) for start in starts))


class TokenReader:
    """Random access to the tokens of one file, by mmap where possible, else by positional reads; of a remote file
    through the cache of its chunks.

    ``tokens`` is a read-only array over the mapping, or None when positional reads are used; call ``check`` before
    using it. Can be pickled (the file is opened anew), so a loader may carry it into worker processes.
    """

    def __init__(self, file: TokenFile, *, mmap: bool | Literal["auto"] = "auto") -> None:
        self.file = file
        self.num_tokens = file.num_tokens
        self.mmap = mmap
        self.tokens: np.ndarray | None = None
        self.remote = None if file.remote is None else RemoteFile(file.remote)
        self.check: Callable[[], None] = _nothing
        if self.remote is not None:  # each read says which version of the object is meant
            return
        self._watched = WatchedFile(file.path, file.end_bytes, fingerprint=_sample_hash)
        self.check = self._watched.check
        if mmap is not False:
            self.tokens = self._map()

    def _map(self) -> np.ndarray | None:
        file = self.file
        try:
            return self._watched.map()[file.offset_bytes :].view(file.dtype)
        except (OSError, ValueError) as error:
            if self.mmap is True:
                raise DataError(f"cannot memory-map {file.path}: {error}", "set mmap: auto or false") from error
            _log.warning("cannot memory-map %s (%s); reading it with positional reads", file.path, error)
            return None

    def read(self, start: int, count: int) -> np.ndarray:
        """A copy of ``count`` tokens from position ``start``, in the file's dtype."""
        out = np.empty(count, self.file.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill the one-dimensional integer array ``out`` with the tokens from position ``start`` on.

        Raises:
            DataError: the range is not inside the file, or the file became shorter.
        """
        if start < 0 or start + len(out) > self.num_tokens:
            raise DataError(
                f"tokens {start}..{start + len(out)} asked of {self.file.name}, which has {self.num_tokens}"
            )
        if self.tokens is not None:
            self.check()
            out[:] = self.tokens[start : start + len(out)]
        elif out.dtype == self.file.dtype and out.flags.c_contiguous:
            self.read_bytes(start, out.view(np.uint8).data)
        else:
            raw = np.empty(len(out), self.file.dtype)
            self.read_bytes(start, raw.view(np.uint8).data)
            out[:] = raw

    def read_bytes(self, start: int, view: memoryview) -> None:
        """Fill ``view``, of bytes, with the tokens from position ``start`` on, by a positional read.

        Raises:
            DataError: the file became shorter.
        """
        offset = self.file.offset_bytes + start * self.file.dtype.itemsize
        if self.remote is not None:
            self.remote.read_into(offset, view)
            return
        while (done := os.preadv(self._watched.descriptor, (view,), offset)) < len(view):
            if done == 0:
                raise DataError(f"{self.file.path} ended while it was read", "it was changed; check it")
            view, offset = view[done:], offset + done

    def close(self) -> None:
        """Let go of the file; reading afterwards is an error."""
        self.tokens = None
        if self.remote is None:
            self._watched.close()

    def __enter__(self) -> TokenReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.file, self.mmap)


def _nothing() -> None:
    """What there is to check of a remote file between two reads."""


def _reopen(file: TokenFile, mmap: bool | Literal["auto"]) -> TokenReader:
    return TokenReader(file, mmap=mmap)


def iter_blocks(reader: TokenReader, tokens_per_block: int = 1 << 22) -> Iterator[np.ndarray]:
    """The whole file in order, a few MB at a time, in the file's dtype."""
    for start in range(0, reader.num_tokens, tokens_per_block):
        yield reader.read(start, min(tokens_per_block, reader.num_tokens - start))
