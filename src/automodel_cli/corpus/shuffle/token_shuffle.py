"""Token documents in random order: the second half of `--shuffle`, after the tokenizer.

1. a ``ShuffleStore`` takes token chunks in source order, as any sink of the pipeline, and scatters their documents
   to buckets on disk (``buckets``)
2. ``iter_shuffled`` gives them back as chunks in the order of their keys, from any key on

A document's key follows from seed, file and row (``splitting``), so `preprocess shuffle` puts the same documents in
the same order. Tokens take half the disk space of their text, and are made once. What has to be shuffled as text
(several fields a row, another tool's input) is served by ``shuffled_source``. With ``max_tokens`` the two differ: here
the first so many tokens of the source are shuffled, there the first so many of the shuffled documents are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.documents.units import TokenChunk
from automodel_cli.corpus.shuffle.buckets import BucketReader, Buckets, BucketWriter, bucket_count
from automodel_cli.corpus.shuffle.splitting import place_of

DEFAULT_MEMORY_BYTES = 500_000_000
_UNKNOWN_TOKENS = 10**10  # where nobody knows: too many buckets cost little, too large ones are divided
_TOKENS_A_DOCUMENT = 500  # a guess, for the memory that records take


class ShuffleStore:
    """First half: takes chunks in source order and keeps them in buckets; stops at ``max_tokens``.

    A document is in the order of its chunk's ``places``; without those in that of its number in the whole source.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: np.dtype,
        seed: int,
        max_tokens: int | None = None,
        likely_tokens: int | None = None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._dtype, self._max_tokens = dtype, max_tokens
        self.tokens = self.documents = self.reached = 0
        self._held: list[tuple[np.ndarray, np.ndarray]] = []  # tokens and records
        self._held_bytes = 0
        self._most_held_bytes = memory_bytes // 4  # they are copied twice on their way to the buckets
        self._unfinished: list[np.ndarray] = []  # pieces of a document that goes on in the next chunk
        self._unfinished_place = np.zeros(0, dtype=np.uint64)
        known = [count for count in (max_tokens, likely_tokens) if count is not None]
        tokens = min(known) if known else _UNKNOWN_TOKENS
        count = bucket_count(tokens * dtype.itemsize, tokens // _TOKENS_A_DOCUMENT, memory_bytes)
        self._buckets = Buckets(folder, seed, count, (("ordinal", "<u8"),))
        self._buckets.create()
        self._writer = BucketWriter(self._buckets)

    @property
    def full(self) -> bool:
        """Whether ``max_tokens`` are here."""
        return self._max_tokens is not None and self.tokens >= self._max_tokens

    def feed(self, chunk: TokenChunk) -> bool:
        """Keep a chunk's documents. Never a shard finished."""
        tokens, lengths, places = chunk.tokens, chunk.lengths, self._places(chunk)
        if self._max_tokens is not None:
            room = self._max_tokens - self.tokens
            begins = np.cumsum(lengths) - lengths
            lengths = np.minimum(lengths, np.maximum(room - begins, 0))
            lengths = lengths[: int(np.searchsorted(begins, room))]
            tokens, places = tokens[:room], places[: len(lengths)]
        self.reached = len(lengths)
        if len(lengths) == 0:
            return False
        self.tokens += len(tokens)
        if chunk.continues or chunk.unfinished or self._unfinished:
            tokens, lengths, places = self._join(tokens, lengths, places, chunk)
        self._store(tokens, lengths, places)
        return False

    def _places(self, chunk: TokenChunk) -> np.ndarray:
        if chunk.places is not None:
            return chunk.places
        pending = bool(self._unfinished)  # its place is known already
        first = self.documents + pending - (pending and chunk.continues)
        return place_of(0, first + np.arange(len(chunk.lengths)))

    def _join(
        self, tokens: np.ndarray, lengths: np.ndarray, places: np.ndarray, chunk: TokenChunk
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put together documents that came in pieces; a last one that goes on is held back."""
        tokens = np.concatenate([*self._unfinished, tokens])
        held = sum(len(piece) for piece in self._unfinished)
        if self._unfinished and chunk.continues:
            lengths = np.concatenate(([held + lengths[0]], lengths[1:]))
            places = np.concatenate((self._unfinished_place, places[1:]))
        elif self._unfinished:
            lengths = np.concatenate(([held], lengths))
            places = np.concatenate((self._unfinished_place, places))
        self._unfinished = []
        if chunk.unfinished:
            border = int(lengths[:-1].sum())
            self._unfinished, self._unfinished_place = [tokens[border:]], places[-1:]
            tokens, lengths, places = tokens[:border], lengths[:-1], places[:-1]
        return tokens, lengths, places

    def _store(self, tokens: np.ndarray, lengths: np.ndarray, places: np.ndarray) -> None:
        records = np.zeros(len(lengths), dtype=self._buckets.record)
        records["ordinal"] = self.documents + np.arange(len(lengths))
        records["place"] = places
        records["length"] = lengths * self._dtype.itemsize
        self.documents += len(lengths)
        self._held.append((tokens, records))
        self._held_bytes += tokens.nbytes + records.nbytes
        if self._held_bytes >= self._most_held_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        tokens = np.concatenate([tokens for tokens, _ in self._held])
        records = np.concatenate([records for _, records in self._held])
        self._held, self._held_bytes = [], 0
        self._writer.scatter(tokens.view(np.uint8), records)

    def close(self) -> None:
        """All documents are in their buckets, durably: an interrupted run goes on from here."""
        if self._unfinished:  # the source ended inside a document; only max_tokens can do that
            piece, self._unfinished = np.concatenate(self._unfinished), []
            self._store(piece, np.array([len(piece)]), self._unfinished_place)
        self._flush()
        self._writer.close()
        self._buckets.sync()

    def sync(self) -> dict[str, Any]:
        """Gathering starts anew after an interruption; there is nothing to continue from."""
        return {}

    def abandon(self) -> None:
        """After an error: give the disk space back."""
        self._writer.close()
        self._buckets.remove()


def iter_shuffled(
    folder: Path, dtype: np.dtype, *, first: int = 0, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> Iterator[tuple[int, TokenChunk]]:
    """Second half: the documents from key ``first`` on in the order of their keys, each chunk with its first key.

    The memory may be another than that of the first half, also after an interruption.

    Raises:
        DataError: a bucket is missing or not whole.
    """
    reader = BucketReader(Buckets.open(folder), memory_bytes, keep=True)
    for rows in reader.read(first):
        lengths = rows.records["length"].astype(np.int64) // dtype.itemsize
        yield (
            rows.key,
            TokenChunk.of_documents(
                rows.data.view(dtype),
                lengths,
                ordinals=rows.records["ordinal"].astype(np.int64),
            ),
        )
