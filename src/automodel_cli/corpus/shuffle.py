"""Documents in random order with bounded memory: gather into buckets by key, then sort bucket by bucket.

A document's key is 64 bits of hash(seed, number); the order is by key. The high bits of the key choose the bucket, so
the number of buckets changes memory and nothing else. A bucket is two files in ``.shuffle``: ``NNN.tokens`` (ids) and
``NNN.docs`` (uint64 key, ordinal, length for each document).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.splitting import document_hash
from automodel_cli.corpus.units import TokenChunk
from automodel_cli.errors import DataError
from automodel_cli.files import disk_errors_named

FOLDER_NAME = ".shuffle"
_BUCKET_BYTES = 128 << 20  # sorted in memory at once
_HELD_BYTES = 64 << 20  # gathered in memory before files are appended to
_RECORD = np.dtype([("key", "<u8"), ("ordinal", "<u8"), ("length", "<u8")])


def bucket_bits(total_tokens: int | None, dtype: np.dtype) -> int:
    """Bits of the key that choose the bucket, so that one has about 128 MiB; 256 buckets if nobody knows."""
    if total_tokens is None:
        return 8
    return min(12, max(0, int(np.ceil(np.log2(max(1, total_tokens * dtype.itemsize / _BUCKET_BYTES))))))


class ShuffleStore:
    """First half: takes chunks in source order and keeps them in buckets; stops at ``max_tokens``."""

    def __init__(
        self, parent: Path, *, dtype: np.dtype, seed: int, bits: int, max_tokens: int | None
    ) -> None:
        self.folder = parent / FOLDER_NAME
        self._dtype, self._seed, self._bits, self._max_tokens = dtype, seed, bits, max_tokens
        self.tokens = self.documents = self.reached = 0
        self._held: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._held_bytes = 0
        self._unfinished: list[np.ndarray] = []  # pieces of a document that goes on in the next chunk
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    @property
    def full(self) -> bool:
        """Whether ``max_tokens`` are here."""
        return self._max_tokens is not None and self.tokens >= self._max_tokens

    def feed(self, chunk: TokenChunk) -> bool:
        """Keep a chunk's documents. Never a shard finished."""
        tokens, lengths = chunk.tokens, chunk.lengths
        if self._max_tokens is not None:
            room = self._max_tokens - self.tokens
            begins = np.cumsum(lengths) - lengths
            lengths = np.minimum(lengths, np.maximum(room - begins, 0))
            lengths = lengths[: int(np.searchsorted(begins, room))]
            tokens = tokens[:room]
        self.reached = len(lengths)
        if len(lengths) == 0:
            return False
        self.tokens += len(tokens)
        if chunk.continues or chunk.unfinished or self._unfinished:
            tokens, lengths = self._join(tokens, lengths, chunk)
        self._store(tokens, lengths)
        return False

    def _join(
        self, tokens: np.ndarray, lengths: np.ndarray, chunk: TokenChunk
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put together documents that came in pieces; a last one that goes on is held back."""
        tokens = np.concatenate([*self._unfinished, tokens])
        lengths = lengths.copy()
        held = sum(len(piece) for piece in self._unfinished)
        if held and chunk.continues:
            lengths[0] += held
        elif held:
            lengths = np.concatenate(([held], lengths))
        self._unfinished = []
        if chunk.unfinished:
            border = int(lengths[:-1].sum())
            self._unfinished = [tokens[border:]]
            tokens, lengths = tokens[:border], lengths[:-1]
        return tokens, lengths

    def _store(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        records = np.zeros(len(lengths), dtype=_RECORD)
        records["ordinal"] = self.documents + np.arange(len(lengths), dtype=np.uint64)
        records["key"] = document_hash(self._seed, "shuffle", records["ordinal"])
        records["length"] = lengths
        self.documents += len(lengths)
        buckets = (
            records["key"] >> np.uint64(64 - self._bits) if self._bits else np.zeros(len(records), np.uint64)
        )
        stops = np.cumsum(lengths)
        for bucket in np.unique(buckets).tolist():
            chosen = np.flatnonzero(buckets == bucket)
            parts = [tokens[stops[k] - lengths[k] : stops[k]] for k in chosen]
            self._held.setdefault(bucket, []).append((np.concatenate(parts), records[chosen]))
        self._held_bytes += tokens.nbytes
        if self._held_bytes >= _HELD_BYTES:
            self._flush()

    def _flush(self) -> None:
        for bucket, parts in self._held.items():
            with disk_errors_named(self.folder):
                for kind, column in (("tokens", 0), ("docs", 1)):
                    with (self.folder / f"{bucket:03x}.{kind}").open("ab") as handle:
                        handle.writelines(part[column].tobytes() for part in parts)
        self._held, self._held_bytes = {}, 0

    def close(self) -> None:
        """All documents are in their buckets."""
        if self._unfinished:  # the source ended inside a document; only max_tokens can do that
            piece, self._unfinished = np.concatenate(self._unfinished), []
            self._store(piece, np.array([len(piece)]))
        self._flush()

    def sync(self) -> dict[str, Any]:
        """Gathering starts anew after an interruption; there is nothing to continue from."""
        return {}

    def abandon(self) -> None:
        """After an error: give the disk space back."""
        shutil.rmtree(self.folder, ignore_errors=True)


def iter_shuffled(
    parent: Path, dtype: np.dtype, bits: int, *, first: int = 0
) -> Iterator[tuple[int, TokenChunk]]:
    """Second half: the documents of bucket ``first`` and later ones in the order of their keys.

    Raises:
        DataError: a bucket is not whole.
    """
    for bucket in range(first, 1 << bits):
        base = parent / FOLDER_NAME / f"{bucket:03x}"
        if not base.with_suffix(".docs").exists():
            continue
        records = np.fromfile(base.with_suffix(".docs"), dtype=_RECORD)
        tokens = np.fromfile(base.with_suffix(".tokens"), dtype=dtype)
        if int(records["length"].sum()) != len(tokens):
            raise DataError(f"{base}.tokens is not whole", "run again with --overwrite")
        stops = np.cumsum(records["length"].astype(np.int64))
        order = np.lexsort((records["ordinal"], records["key"]))
        parts = [tokens[stops[k] - int(records["length"][k]) : stops[k]] for k in order]
        yield (
            bucket,
            TokenChunk(
                np.concatenate(parts),
                records["length"][order].astype(np.int64),
                ordinals=records["ordinal"][order],
            ),
        )


def remove_buckets(parent: Path) -> None:
    """The shuffled corpus is written."""
    shutil.rmtree(parent / FOLDER_NAME, ignore_errors=True)
