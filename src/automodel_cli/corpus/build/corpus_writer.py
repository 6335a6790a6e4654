"""From a stream of token chunks to the shards of a corpus: exact length, splits, rolling, a state to continue from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from automodel_cli.corpus.documents.units import Split, TokenChunk
from automodel_cli.corpus.formats.nanogpt_bin import Layout, inspect_token_file
from automodel_cli.corpus.formats.nanogpt_writer import ShardInfo, ShardWriter, synced_is_there
from automodel_cli.corpus.shuffle.splitting import TRAIN, VAL, SplitRule
from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, Items, validated

_SPLITS: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True)
class CorpusLayout:
    """Where a corpus goes and what its files look like."""

    folder: Path
    layout: Layout
    dtype: np.dtype
    shard_tokens: int

    def stem(self, split: Split) -> str:
        """``dataset`` and ``val``, or nanoGPT's ``train`` and ``val`` without header."""
        return "val" if split == "val" else ("train" if self.layout == "raw" else "dataset")

    def shard_path(self, split: Split, number: int) -> Path:
        """``dataset.bin``, ``dataset_00001.bin``, ..."""
        return self.folder / f"{self.stem(split)}{f'_{number:05d}' if number else ''}.bin"


class RollingWriter:
    """The shards of one split; the next one is begun when there is a token for it."""

    def __init__(
        self,
        layout: CorpusLayout,
        split: Split,
        state: dict[str, Any] | None = None,
        open_shard: type[ShardWriter] = ShardWriter,
    ) -> None:
        self.layout, self.split, self._open_shard = layout, split, open_shard
        self.shards = [
            ShardInfo(layout.shard_path(split, number), tokens, documents)
            for number, (tokens, documents) in enumerate(state["shards"] if state else [])
        ]
        self.tokens = sum(shard.num_tokens for shard in self.shards)
        self.documents = sum(shard.num_documents for shard in self.shards)
        self._synced = (0, 0)
        self._open: ShardWriter | None = None
        if state and state["open"][0]:
            self._synced = (state["open"][0], state["open"][1])
            self._open = self._begin(synced=self._synced)
            self.tokens += self._synced[0]
            self.documents += self._synced[1]

    def _begin(self, synced: tuple[int, int] = (0, 0)) -> ShardWriter:
        path = self.layout.shard_path(self.split, len(self.shards))
        return self._open_shard(path, dtype=self.layout.dtype, layout=self.layout.layout, synced=synced)

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> bool:
        """Append; ``starts`` are offsets of document beginnings. True if a shard was finished."""
        rolled = False
        self.tokens += len(tokens)
        self.documents += len(starts)
        while len(tokens):
            self._open = self._open or self._begin()
            room = self.layout.shard_tokens - self._open.num_tokens
            cut = int(np.searchsorted(starts, room))
            self._open.write(tokens[:room], starts[:cut])
            tokens, starts = tokens[room:], starts[cut:] - room
            if self._open.num_tokens == self.layout.shard_tokens:
                self._finish_shard()
                rolled = True
        return rolled

    def _finish_shard(self) -> None:
        assert self._open is not None
        self.shards.append(self._open.close())
        self._open, self._synced = None, (0, 0)

    def sync(self) -> dict[str, Any]:
        """Make all durable; the state from which a later run continues."""
        if self._open is not None:
            self._synced = self._open.sync()
        return {"shards": [[s.num_tokens, s.num_documents] for s in self.shards], "open": list(self._synced)}

    def close(self) -> list[ShardInfo]:
        """Publish the last shard."""
        if self._open is not None:
            self._finish_shard()
        return self.shards

    def abandon(self) -> None:
        """After an error: leave finished shards and what the last ``sync`` made durable."""
        if self._open is not None:
            self._open.abandon(synced=self._synced)
            self._open = None


class CorpusWriter:
    """Divides a stream into training and validation shards and stops at exactly ``max_tokens``.

    A document that meets the end of its split's share ends there and its rest is dropped, so that no text is in
    both splits.
    """

    def __init__(
        self,
        layout: CorpusLayout,
        rule: SplitRule,
        state: dict[str, Any] | None = None,
        open_shard: type[ShardWriter] = ShardWriter,
    ) -> None:
        self.rule = rule
        saved = state["splits"] if state else {}
        self.splits = {split: RollingWriter(layout, split, saved.get(split), open_shard) for split in _SPLITS}
        self.ordinal = state["ordinal"] if state else 0  # number of the next new document
        self._current = state["current"] if state else TRAIN  # of a document that goes on in the next chunk
        self.reached = 0  # documents of the last chunk up to the last one of which something was written

    @property
    def tokens(self) -> int:
        """Tokens written to both splits."""
        return sum(writer.tokens for writer in self.splits.values())

    @property
    def documents(self) -> int:
        """Documents begun in either split."""
        return sum(writer.documents for writer in self.splits.values())

    @property
    def full(self) -> bool:
        """Whether ``max_tokens`` are written."""
        return self.rule.max_tokens is not None and self.tokens >= self.rule.max_tokens

    def feed(self, chunk: TokenChunk) -> bool:
        """Write a chunk. True if a shard was finished on the way."""
        self.reached = 0
        if len(chunk.lengths) == 0:
            return False
        begins = np.cumsum(chunk.lengths) - chunk.lengths
        is_new = np.ones(len(begins), dtype=bool)
        is_new[0] = not chunk.continues
        has_start = is_new & (chunk.lengths > 0)  # an empty document without end-of-text is nothing at all
        if self.rule.rule == "tail":
            return self._feed_around_border(chunk.tokens, begins, begins[has_start])
        chosen = self._choose(chunk, is_new)
        rolled = False
        for first, stop in _runs(chosen):
            end = begins[stop] if stop < len(begins) else len(chunk.tokens)
            starts = begins[first:stop][has_start[first:stop]] - begins[first]
            written = self.tokens
            rolled |= self._write(int(chosen[first]), chunk.tokens[begins[first] : end], starts)
            if written := self.tokens - written:
                self.reached = first + int(np.searchsorted(begins[first:stop] - begins[first], written))
        self._current = int(chosen[-1])
        return rolled

    def _choose(self, chunk: TokenChunk, is_new: np.ndarray) -> np.ndarray:
        """The split of each document of a chunk."""
        chosen = np.full(len(is_new), self._current, dtype=np.int8)
        count = int(is_new.sum())
        ordinals = self.ordinal + np.arange(count) if chunk.ordinals is None else chunk.ordinals
        self.ordinal += count
        if self.rule.rule == "given":
            chosen[is_new] = VAL if chunk.split == "val" else TRAIN
        elif self.rule.rule == "none":
            chosen[is_new] = TRAIN
        else:
            left = self._left()
            if left[self._current] is not None:  # the rest of an earlier document comes first
                left[self._current] -= int(chunk.lengths[~is_new].sum())  # type: ignore[operator]
            chosen[is_new] = self.rule.choose(
                ordinals, chunk.lengths[is_new], train_left=left[TRAIN], val_left=left[VAL]
            )
        return chosen

    def _write(self, split: int, tokens: np.ndarray, starts: np.ndarray) -> bool:
        """Write a run of documents of one split, cut to what still fits."""
        room = len(tokens)
        if self.rule.max_tokens is not None:
            room = min(room, self.rule.max_tokens - self.tokens)
        left = self._left()[split]
        if left is not None:
            room = min(room, max(left, 0))
        return self.splits[_SPLITS[split]].write(tokens[:room], starts[: int(np.searchsorted(starts, room))])

    def _left(self) -> list[int | None]:
        """What the budgets of the two splits still allow."""
        budgets = zip(self.rule.budgets, self.splits.values(), strict=True)
        return [None if budget is None else budget - writer.tokens for budget, writer in budgets]

    def _feed_around_border(self, tokens: np.ndarray, begins: np.ndarray, starts: np.ndarray) -> bool:
        """All tokens before ``tail_start`` train, the others validate; that part begins a document by itself."""
        written = self.tokens
        before = min(max(self.rule.tail_start - written, 0), len(tokens))
        cut = int(np.searchsorted(starts, before))
        rolled = self._write(TRAIN, tokens[:before], starts[:cut])
        rest = starts[cut:] - before
        if self.splits["val"].tokens == 0 and before < len(tokens) and (len(rest) == 0 or rest[0] > 0):
            rest = np.concatenate(([0], rest))
        rolled |= self._write(VAL, tokens[before:], rest)
        self.reached = int(np.searchsorted(begins, self.tokens - written))
        return rolled

    def sync(self) -> dict[str, Any]:
        """Make all durable; JSON from which ``CorpusWriter(..., state)`` continues."""
        splits = {split: writer.sync() for split, writer in self.splits.items()}
        return {"splits": splits, "ordinal": self.ordinal, "current": self._current}

    def close(self) -> dict[Split, list[ShardInfo]]:
        """Publish the last shards of both splits."""
        return {split: writer.close() for split, writer in self.splits.items()}

    def abandon(self) -> None:
        """After an error: leave finished shards and what the last ``sync`` made durable."""
        for writer in self.splits.values():
            writer.abandon()


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """``[0, 0, 1]`` -> ``[(0, 2), (2, 3)]``."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)]
    return list(itertools.pairwise(edges))


_Pair = Annotated[tuple[Count, Count], Field(strict=False)]


class _SplitState(FileModel):
    """Of a ``RollingWriter``: (tokens, documents) of each finished shard, and of the open one what counts."""

    shards: Items[_Pair]
    open: _Pair


class _State(FileModel):
    """Of a ``CorpusWriter``, as it stands in a journal."""

    splits: dict[Split, _SplitState]
    ordinal: Count
    current: Literal[0, 1]


def state_is_on_disk(layout: CorpusLayout, state: dict[str, Any]) -> bool:
    """Whether ``state`` is one, and the shards and temporaries that it speaks of are there with their sizes."""
    try:
        known = validated(state, _State, "state")
    except DataError:
        return False
    if set(known.splits) != set(_SPLITS):
        return False
    for split in _SPLITS:
        saved = state["splits"][split]
        for number, (tokens, _) in enumerate(saved["shards"]):
            try:
                file = inspect_token_file(layout.shard_path(split, number), raw_dtype=layout.dtype.name)
            except DataError:
                return False
            if file.num_tokens != tokens:
                return False
        synced = (saved["open"][0], saved["open"][1])
        path = layout.shard_path(split, len(saved["shards"]))
        if synced[0] and not synced_is_there(path, synced, layout.dtype, layout.layout):
            return False
    return True
