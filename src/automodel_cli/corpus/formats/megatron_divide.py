"""One long pair of files for each key, divided into N parts with about as many tokens each, order kept.

Where the parts end can only be known when all tokens are counted, so ``--shards N`` writes everything once to a
hidden folder and then copies it, at the speed of the disk, into the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.megatron_bin import (
    MegatronFile,
    MegatronIndex,
    MegatronWriter,
    idx_path,
    inspect_prefix,
)
from automodel_cli.corpus.formats.nanogpt_bin import TokenReader
from automodel_cli.errors import DataError

_BLOCK_TOKENS = 4 << 20  # copied at a time


class Tokens(Protocol):
    """The ids of a long pair."""

    def read(self, start: int, count: int) -> np.ndarray:
        """``count`` ids from number ``start`` on."""
        ...


OpenPair = Callable[[Path], tuple[MegatronFile, Tokens]]


@dataclass
class _Spool:
    """One key's long pair, opened."""

    key: str
    index: MegatronIndex
    tokens: Tokens
    bounds: np.ndarray  # sequences before each document
    begins: np.ndarray  # tokens before each document


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
    opened = [_open(spool, key, opener) for key in spool.keys if idx_path(spool.prefix(0, key)).exists()]
    borders = _borders(opened[0].begins, shards)
    pairs, copied = [], 0
    for part in range(shards):
        for source in opened:
            documents = int(borders[part]), int(borders[part + 1])
            pair = _copy(source, layout, part, documents, writer_type)
            if pair is not None:
                pairs.append(pair)
                copied += pair.tokens
                on_progress(copied)
    return pairs


def _open(spool: MegatronLayout, key: str, opener: OpenPair) -> _Spool:
    file, tokens = opener(spool.prefix(0, key))
    index = MegatronIndex(file)
    bounds = index.document_bounds()
    ends = np.concatenate(([0], np.cumsum(index.lengths(), dtype=np.int64)))
    return _Spool(key, index, tokens, bounds, ends[bounds])


def _borders(begins: np.ndarray, shards: int) -> np.ndarray:
    """Documents at which parts begin and end: the first one after each N-th of the tokens, no part without any."""
    with_text = np.flatnonzero(np.diff(begins))
    if len(with_text) < shards:
        raise DataError(
            f"there are {len(with_text):,} documents with text for {shards:,} shards",
            "ask for fewer --shards",
        )
    wanted = np.arange(1, shards) * (int(begins[-1]) / shards)
    chosen = np.searchsorted(begins[with_text], wanted)
    for k in range(shards - 1):  # each part has a document, and leaves one for each that follows
        low = chosen[k - 1] + 1 if k else 1
        chosen[k] = min(max(chosen[k], low), len(with_text) - (shards - 1 - k))
    return np.concatenate(([0], with_text[chosen], [len(begins) - 1]))


def _copy(
    source: _Spool, layout: MegatronLayout, part: int, documents: tuple[int, int], writer_type: type[MegatronWriter]
) -> Pair | None:
    """Documents ``first`` to ``stop`` as a pair of their own; None if they hold no tokens."""
    first, stop = documents
    if source.begins[first] == source.begins[stop]:
        return None
    writer = writer_type(layout.prefix(part, source.key), dtype=layout.dtype)
    try:
        while first < stop:
            limit = source.begins[first] + _BLOCK_TOKENS
            until = int(np.searchsorted(source.begins[: stop + 1], limit, side="right")) - 1
            _append(writer, source, first, max(until, first + 1), layout.skip_empty)
            first = max(until, first + 1)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return Pair(part, source.key, writer.num_tokens, writer.num_sequences, writer.num_documents)


def _append(writer: MegatronWriter, source: _Spool, first: int, stop: int, skip_empty: bool) -> None:
    begin, end = int(source.begins[first]), int(source.begins[stop])
    lengths = source.index.lengths(int(source.bounds[first]), int(source.bounds[stop]))
    sizes = np.diff(source.bounds[first : stop + 1])
    writer.write(source.tokens.read(begin, end - begin), lengths, sizes[sizes > 0] if skip_empty else sizes)
