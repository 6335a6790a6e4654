"""From a stream of token chunks to pairs of Megatron files: parts, exact length, a state to continue from.

A *part* is one pair of files for each key. All keys of a part hold the same rows, so document k of one key belongs
to document k of another (unless empty documents are left out). What begins a new part:

| parts  | a new part begins                                                                           |
|--------|---------------------------------------------------------------------------------------------|
| file   | with each input file; its number is the file's                                              |
| tokens | before the document with which the first key would have more than ``part_tokens``           |
| one    | never                                                                                       |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from automodel_cli.corpus.documents.units import TokenChunk
from automodel_cli.corpus.formats.megatron_bin import inspect_prefix
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter, Synced, can_reopen, reopen
from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, Items, validated

Level = Literal["document", "sentence"]
Parts = Literal["file", "tokens", "one"]


@dataclass(frozen=True)
class MegatronLayout:
    """Where pairs go and what they are called.

    Attributes:
        name: what names begin with; Megatron's output prefix, without folders.
        skip_empty: whether documents without ids are left out (NeMo) instead of being kept as boundaries (Megatron).
    """

    folder: Path
    name: str
    keys: tuple[str, ...]
    level: Level
    dtype: np.dtype
    parts: Parts = "file"
    part_tokens: int | None = None
    skip_empty: bool = False

    def prefix(self, part: int, key: str) -> Path:
        """``FOLDER/NAME_3_text_document``."""
        return self.folder / f"{self.name}_{part}_{key}_{self.level}"


@dataclass(frozen=True)
class Pair:
    """A pair of files that is there."""

    part: int
    key: str
    tokens: int
    sequences: int
    documents: int


class _Part:
    """The open pairs of one part, one for each key."""

    def __init__(
        self, layout: MegatronLayout, number: int, open_pair: type[MegatronWriter], synced: list[Synced] | None = None
    ) -> None:
        self.layout, self.number = layout, number
        self.synced: list[Synced] = synced or [(0, 0, 0)] * len(layout.keys)
        self.writers = []
        for key, counts in zip(layout.keys, self.synced, strict=True):
            prefix = layout.prefix(number, key)
            if any(counts):
                reopen(prefix, layout.dtype, counts)
            self.writers.append(open_pair(prefix, dtype=layout.dtype, synced=counts))

    def write(self, chunk: TokenChunk, first: int, stop: int, *, continues: bool) -> None:
        """Documents ``first`` to ``stop``; if ``continues`` the first one's tokens go to the last sequence."""
        offset = 0
        for writer, field in zip(self.writers, chunk.fields, strict=True):
            tokens, lengths, sizes = field.of_documents(chunk.tokens[offset:], first, stop)
            offset += field.num_tokens
            if continues and len(sizes):
                border = int(lengths[: sizes[0]].sum())
                writer.extend(tokens[:border])
                tokens, lengths, sizes = tokens[border:], lengths[sizes[0] :], sizes[1:]
            if self.layout.skip_empty:
                sizes = sizes[sizes > 0]
            writer.write(tokens, lengths, sizes)

    def sync(self) -> list[Synced]:
        """Make all durable; what to go on from."""
        self.synced = [writer.sync() for writer in self.writers]
        return self.synced

    def close(self) -> list[Pair]:
        """Publish. A pair without tokens is none: Megatron cannot open it."""
        pairs = []
        for key, writer in zip(self.layout.keys, self.writers, strict=True):
            if writer.num_tokens == 0:
                writer.abandon()
                continue
            writer.close()
            counts = (writer.num_tokens, writer.num_sequences, writer.num_documents)
            pairs.append(Pair(self.number, key, *counts))
        return pairs

    def abandon(self) -> None:
        for writer, counts in zip(self.writers, self.synced, strict=True):
            writer.abandon(counts)


class MegatronSink:
    """Divides a stream into parts and stops when the first key has exactly ``max_tokens``.

    The document that meets the end is cut there; other keys get all of their document.
    """

    def __init__(
        self,
        layout: MegatronLayout,
        *,
        max_tokens: int | None = None,
        state: dict[str, Any] | None = None,
        open_pair: type[MegatronWriter] = MegatronWriter,
    ) -> None:
        self.layout, self._max_tokens, self._open_pair = layout, max_tokens, open_pair
        self.tokens = state["tokens"] if state else 0  # of the first key
        self.documents = state["documents"] if state else 0
        self.reached = 0
        self.pairs = [Pair(*pair) for pair in state["pairs"]] if state else []
        self._part: _Part | None = None
        self._part_tokens = state["part_tokens"] if state else 0  # of the first key, in the open part
        if state and state["open"] is not None:
            synced = [(tokens, sequences, documents) for tokens, sequences, documents in state["kept"]]
            self._part = _Part(layout, state["open"], open_pair, synced)

    @property
    def full(self) -> bool:
        """Whether ``max_tokens`` are written."""
        return self._max_tokens is not None and self.tokens >= self._max_tokens

    def feed(self, chunk: TokenChunk) -> bool:
        """Write a chunk. True if a part was finished on the way."""
        published = False
        if self.layout.parts == "file" and (self._part is None or self._part.number != chunk.file):
            published = self._begin(chunk.file)
        documents = self._limit(chunk)
        begins = chunk.fields[0].begins
        self.reached = documents
        continues = chunk.continues and documents > 0
        first = 0
        while first < documents:
            stop = self._fitting(begins, first, documents, must=continues)
            if stop == first:
                published |= self._begin(0 if self._part is None else self._part.number + 1)
                continue
            assert self._part is not None
            self._part.write(chunk, first, stop, continues=continues)
            self._part_tokens += int(begins[stop] - begins[first])
            first, continues = stop, False
        self.tokens += int(begins[documents])
        self.documents += documents - (chunk.continues and documents > 0)
        return published

    def _limit(self, chunk: TokenChunk) -> int:
        """How many documents are wanted; cuts the last one where ``max_tokens`` end."""
        field = chunk.fields[0]
        if self._max_tokens is None:
            return len(field.sizes)
        left = self._max_tokens - self.tokens
        documents = int(np.searchsorted(field.begins[:-1], left))
        if documents and field.begins[documents] > left:
            chunk.fields[0] = field.cut(documents, left)
        return documents

    def _fitting(self, begins: np.ndarray, first: int, documents: int, *, must: bool) -> int:
        """The document before which the open part is full; ``first`` if it is so already, or there is none.

        A part takes one document at least, and the rest of one that it has begun (``must``).
        """
        if self._part is None:
            return first
        if self.layout.parts != "tokens":
            return documents
        assert self.layout.part_tokens is not None
        room = self.layout.part_tokens - self._part_tokens
        stop = int(np.searchsorted(begins[: documents + 1], begins[first] + room, side="right")) - 1
        return max(stop, first + 1) if must or self._part_tokens == 0 else max(stop, first)

    def _begin(self, number: int) -> bool:
        published = self._finish()
        self._part, self._part_tokens = _Part(self.layout, number, self._open_pair), 0
        return published

    def _finish(self) -> bool:
        if self._part is None:
            return False
        pairs = self._part.close()
        self.pairs += pairs
        self._part = None
        return bool(pairs)

    def sync(self) -> dict[str, Any]:
        """Make all durable; JSON from which ``MegatronSink(..., state=...)`` continues."""
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "pairs": [[p.part, p.key, p.tokens, p.sequences, p.documents] for p in self.pairs],
            "part_tokens": self._part_tokens,
            "open": None if self._part is None else self._part.number,
            "kept": [] if self._part is None else [list(counts) for counts in self._part.sync()],
        }

    def close(self) -> list[Pair]:
        """Publish the last part; all pairs, in order."""
        self._finish()
        return self.pairs

    def abandon(self) -> None:
        """After an error: leave finished parts and what the last ``sync`` made durable."""
        if self._part is not None:
            self._part.abandon()
            self._part = None


class _State(FileModel):
    """Of a ``MegatronSink``, as it stands in a journal."""

    tokens: Count
    documents: Count
    pairs: Items[Annotated[tuple[Count, str, Count, Count, Count], Field(strict=False)]]
    part_tokens: Count
    open: Count | None
    kept: Items[Annotated[tuple[Count, Count, Count], Field(strict=False)]]


def state_is_on_disk(layout: MegatronLayout, state: dict[str, Any]) -> bool:
    """Whether ``state`` is one, and the pairs and temporaries that it speaks of are there."""
    try:
        known = validated(state, _State, "state")
    except DataError:
        return False
    if len(known.kept) != (0 if known.open is None else len(layout.keys)):
        return False
    if not {pair[1] for pair in known.pairs} <= set(layout.keys):
        return False
    for pair in (Pair(*pair) for pair in state["pairs"]):
        try:
            file = inspect_prefix(layout.prefix(pair.part, pair.key))
        except DataError:
            return False
        counts = (file.num_tokens, file.num_sequences, file.num_documents)
        if counts != (pair.tokens, pair.sequences, pair.documents):
            return False
    return all(
        not any(counts) or can_reopen(layout.prefix(state["open"], key), layout.dtype, tuple(counts))
        for key, counts in zip(layout.keys, state["kept"], strict=False)
    )
