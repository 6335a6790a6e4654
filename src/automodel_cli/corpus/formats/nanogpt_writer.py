"""Writes nanoGPT-style token files and their document indices, in pieces that outlive a killed process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.growing_file import GrowingFile, Held
from automodel_cli.corpus.formats.nanogpt_bin import HEADER_BYTES, MAX_SHARD_TOKENS, Layout, header_bytes
from automodel_cli.files import disk_errors_named, file_bytes, temporary_of


@dataclass(frozen=True)
class ShardInfo:
    """What one published shard holds."""

    path: Path
    num_tokens: int
    num_documents: int


class ShardWriter:
    """Writes one token file and its document index; both appear under their names only when whole.

    Tokens go to ``NAME.bin.tmp`` and ``NAME.bos.idx.tmp``; ``close`` puts the count into the header, makes
    both durable and renames them, the index first. ``sync`` makes what was written so far durable and
    ``synced=(tokens, documents)`` of a later writer continues from there, dropping whatever came after.
    """

    def __init__(
        self, path: Path, *, dtype: np.dtype, layout: Layout = "nemo", synced: tuple[int, int] = (0, 0)
    ) -> None:
        self.path = path
        self.index_path = bos_index_path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.layout = layout
        self.num_tokens, self.num_documents = synced
        targets = (path, self.index_path)
        with disk_errors_named(path):
            self._tokens, self._index = map(GrowingFile, targets, synced_sizes(synced, self.dtype, layout))

    @property
    def room(self) -> int:
        """Tokens that still fit under the format's own limit."""
        return MAX_SHARD_TOKENS - self.num_tokens

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Append ``tokens``; ``starts`` are the offsets into ``tokens`` at which documents begin."""
        assert len(tokens) <= self.room, "the caller rolls to the next shard before int32 overflows"
        assert tokens.dtype == self.dtype, f"tokens are {tokens.dtype}, the file holds {self.dtype}"
        positions = (np.asarray(starts, dtype=np.int64) + self.num_tokens).astype("<i4")
        with disk_errors_named(self.path):
            self._put(tokens)
            self._index.handle.write(positions.tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += len(positions)

    def _put(self, tokens: np.ndarray) -> None:
        append_tokens(self._tokens, tokens)

    def sync(self) -> tuple[int, int]:
        """Make everything written so far durable; ``(tokens, documents)`` to give as ``synced`` later."""
        with disk_errors_named(self.path):
            self._tokens.sync()
            self._index.sync()
        return self.num_tokens, self.num_documents

    def close(self) -> ShardInfo:
        """Publish the shard and its index."""
        with disk_errors_named(self.path):
            if self.layout != "raw":
                self._tokens.handle.seek(0)
                self._tokens.handle.write(header_bytes(self.num_tokens, self.dtype, self.layout))
            self._index.publish()
            self._tokens.publish()
        return ShardInfo(self.path, self.num_tokens, self.num_documents)

    def abandon(self, synced: tuple[int, int] = (0, 0)) -> None:
        """Close without publishing, after an error: cut both temporaries back to ``synced`` or remove them."""
        sizes = synced_sizes(synced, self.dtype, self.layout) if synced[0] else (0, 0)
        for file, size in zip((self._tokens, self._index), sizes, strict=True):
            file.abandon(size)


def append_tokens(file: GrowingFile, tokens: np.ndarray | Held) -> None:
    """Ids to a file of the same dtype: an array, or where somebody else has them."""
    if isinstance(tokens, np.ndarray):
        file.write(np.ascontiguousarray(tokens).data.cast("B"))
    else:
        file.take(tokens)


def synced_sizes(synced: tuple[int, int], dtype: np.dtype, layout: Layout) -> tuple[int, int]:
    """Sizes of a token file and its index that hold ``synced`` = (tokens, documents)."""
    offset_bytes = 0 if layout == "raw" else HEADER_BYTES
    return offset_bytes + synced[0] * dtype.itemsize, 4 * synced[1]


def synced_is_there(path: Path, synced: tuple[int, int], dtype: np.dtype, layout: Layout) -> bool:
    """Whether a ``ShardWriter`` for ``path`` can continue from ``synced``: in the temporaries, or published since."""
    for target, size in zip((path, bos_index_path(path)), synced_sizes(synced, dtype, layout), strict=True):
        if max(file_bytes(temporary_of(target)), file_bytes(target)) < size:
            return False
    return True
