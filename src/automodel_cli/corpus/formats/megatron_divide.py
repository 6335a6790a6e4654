"""One long pair of files for each key, divided into N parts with about as many tokens each, order kept.

Where the parts end can only be known when all tokens are counted, so ``--shards N`` writes everything once to a
hidden folder and then copies it, at the speed of the disk, into the parts. The index is read in blocks of documents,
of which only sums are kept, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.megatron_bin import MegatronFile, idx_path, inspect_prefix
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.errors import DataError

_BLOCK_TOKENS = 4 << 20  # copied at a time
_BLOCK_DOCUMENTS = 1 << 16  # of the index, read at a time


class Tokens(Protocol):
    """The ids of a long pair."""

    def read(self, start: int, count: int) -> np.ndarray:
        """``count`` ids from number ``start`` on."""
        ...


OpenPair = Callable[[Path], tuple[MegatronFile, Tokens]]


@dataclass(frozen=True)
class _Block:
    """Some documents of an index: the first one's number; sequences (``bounds``) and tokens (``begins``) before each
    of them and after the last; the lengths of their sequences."""

    first: int
    bounds: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray

    @property
    def with_text(self) -> np.ndarray:
        """Which of them, counted from 0, have tokens."""
        return np.flatnonzero(np.diff(self.begins))


class _Spool:
    """One key's long pair, opened."""

    def __init__(self, key: str, file: MegatronFile, tokens: Tokens, index: BinaryIO) -> None:
        self.key, self.tokens = key, tokens
        self._file, self._index = file, index
        sums = [(0, 0)]  # before each block, and at the end: tokens, documents with any
        for number in range(-(-file.num_documents // _BLOCK_DOCUMENTS)):
            block = self._block(number, sums[-1][0])
            sums.append((int(block.begins[-1]), sums[-1][1] + len(block.with_text)))
        self._tokens_before, self._with_text_before = np.array(sums, np.int64).T
        self.num_documents, self.num_tokens = file.num_documents, sums[-1][0]
        self.num_with_text = sums[-1][1]

    def _block(self, number: int, tokens_before: int) -> _Block:
        first = number * _BLOCK_DOCUMENTS
        stop = min(first + _BLOCK_DOCUMENTS, self._file.num_documents)
        bounds = self._read(self._file.documents_offset + 8 * first, "<i8", stop + 1 - first)
        begin, end = int(bounds[0]), int(bounds[-1])
        lengths = self._read(self._file.lengths_offset + 4 * begin, "<i4", end - begin)
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))) + tokens_before
        return _Block(first, bounds, ends[bounds - begin], lengths)

    def _read(self, offset: int, dtype: str, count: int) -> np.ndarray:
        self._index.seek(offset)
        return np.frombuffer(self._index.read(np.dtype(dtype).itemsize * count), dtype)

    def block(self, number: int) -> _Block:
        """Block ``number``."""
        return self._block(number, int(self._tokens_before[number]))

    def blocks(self, first: int, stop: int) -> Iterator[_Block]:
        """Documents ``first`` to ``stop``, in blocks of those alone."""
        while first < stop:
            block = self.block(first // _BLOCK_DOCUMENTS)
            begin, end = first - block.first, min(stop - block.first, len(block.bounds) - 1)
            sequences = slice(int(block.bounds[begin] - block.bounds[0]), int(block.bounds[end] - block.bounds[0]))
            piece = slice(begin, end + 1)
            yield _Block(first, block.bounds[piece], block.begins[piece], block.lengths[sequences])
            first = block.first + end

    def with_text_before(self, tokens: float) -> int:
        """How many documents with text begin before so many tokens."""
        number = max(0, int(np.searchsorted(self._tokens_before[:-1], tokens)) - 1)
        block = self.block(number)
        begins = block.begins[block.with_text]
        return int(self._with_text_before[number]) + int(np.searchsorted(begins, tokens))

    def document_with_text(self, rank: int) -> int:
        """The number of the ``rank``-th document that has text, counted from 0."""
        number = int(np.searchsorted(self._with_text_before, rank, side="right")) - 1
        block = self.block(number)
        return block.first + int(block.with_text[rank - self._with_text_before[number]])


def open_pair(prefix: Path) -> tuple[MegatronFile, Tokens]:
    """A pair on the disk."""
    file = inspect_prefix(prefix)
    return file, TokenReader(file.tokens)


def divide(
    spool: MegatronLayout,
    layout: MegatronLayout,
    shards: int,
    on_progress: Callable[[int], None],
    *,
    opener: OpenPair = open_pair,
    writer_type: type[MegatronWriter] = MegatronWriter,
) -> list[Pair]:
    """Write parts 0 to ``shards - 1`` of ``layout`` from the pairs in ``spool``; ``on_progress(tokens copied)``.

    Args:
        opener: what opens a pair in ``spool`` by its prefix.

    Raises:
        DataError: there are fewer documents with text than shards.
    """
    with ExitStack() as stack:
        opened = []
        for key in spool.keys:
            if (path := idx_path(spool.prefix(0, key))).exists():
                index = stack.enter_context(path.open("rb"))
                opened.append(_Spool(key, *opener(spool.prefix(0, key)), index))
        borders = _borders(opened[0], shards)
        pairs, copied = [], 0
        for part in range(shards):
            for source in opened:
                pair = _copy(source, layout, part, (borders[part], borders[part + 1]), writer_type)
                if pair is not None:
                    pairs.append(pair)
                    copied += pair.tokens
                    on_progress(copied)
        return pairs


def _borders(source: _Spool, shards: int) -> list[int]:
    """Documents at which parts begin and end: the first one after each N-th of the tokens, no part without any."""
    if source.num_with_text < shards:
        raise DataError(
            f"there are {source.num_with_text:,} documents with text for {shards:,} shards",
            "ask for fewer --shards",
        )
    borders, chosen = [0], 0
    for k in range(1, shards):  # each part has a document, and leaves one for each that follows
        wanted = source.with_text_before(k * (source.num_tokens / shards))
        chosen = min(max(wanted, chosen + 1), source.num_with_text - (shards - k))
        borders.append(source.document_with_text(chosen))
    return [*borders, source.num_documents]


def _copy(
    source: _Spool, layout: MegatronLayout, part: int, documents: tuple[int, int], writer_type: type[MegatronWriter]
) -> Pair | None:
    """Documents ``first`` to ``stop`` as a pair of their own; None if they hold no tokens."""
    writer: MegatronWriter | None = None
    try:
        writer = writer_type(layout.prefix(part, source.key), dtype=layout.dtype)
        for block in source.blocks(*documents):
            _append(writer, source, block, layout.skip_empty)
        if writer.num_tokens == 0:
            writer.abandon()
            return None
        writer.close()
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    return Pair(part, source.key, writer.num_tokens, writer.num_sequences, writer.num_documents)


def _append(writer: MegatronWriter, source: _Spool, block: _Block, skip_empty: bool) -> None:
    """The documents of a block, some tokens at a time."""
    begins, sizes, done = block.begins, np.diff(block.bounds), 0
    ends = block.bounds - block.bounds[0]
    while done < len(sizes):
        until = int(np.searchsorted(begins, begins[done] + _BLOCK_TOKENS, side="right")) - 1
        until = max(until, done + 1)
        chosen = sizes[done:until]
        tokens = source.tokens.read(int(begins[done]), int(begins[until] - begins[done]))
        lengths = block.lengths[ends[done] : ends[until]]
        writer.write(tokens, lengths, chosen[chosen > 0] if skip_empty else chosen)
        done = until
