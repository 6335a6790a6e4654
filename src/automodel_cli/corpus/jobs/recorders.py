"""The writers of both formats without the ids: indices as they will be, and the ranges that the ids come from.

``NAME.ranges`` takes the place of ``NAME.bin``; everything else is the format's own writer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.megatron_bin import MegatronFile, bin_path, idx_path
from automodel_cli.corpus.formats.megatron_divide import divide
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter, Synced
from automodel_cli.corpus.formats.nanogpt_bin import Layout
from automodel_cli.corpus.formats.nanogpt_writer import ShardInfo, ShardWriter
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.jobs.token_range import RangeLog, TokenRange, read_ranges


def ranges_path(path: Path) -> Path:
    """``a/NAME`` or ``a/NAME.bin`` -> ``a/NAME.ranges``; other dots in a name stay."""
    return path.with_name(f"{path.name.removesuffix('.bin')}.ranges")


class ShardRecorder(ShardWriter):
    """Of a nanoGPT-style shard the document index."""

    def __init__(
        self, path: Path, *, dtype: np.dtype, layout: Layout = "nemo", synced: tuple[int, int] = (0, 0)
    ) -> None:
        assert synced == (0, 0)
        super().__init__(ranges_path(path), dtype=dtype, layout="raw")  # the ranges have no header
        self._log = RangeLog(self._tokens.handle)

    def _put(self, tokens: np.ndarray) -> None:
        self._log.add(tokens)

    def close(self) -> ShardInfo:
        self._log.flush()
        return super().close()


class MegatronRecorder(MegatronWriter):
    """Of a Megatron pair the ``.idx``."""

    def __init__(self, prefix: Path | str, *, dtype: np.dtype, synced: Synced = (0, 0, 0)) -> None:
        assert synced == (0, 0, 0)
        super().__init__(prefix, dtype=dtype)
        self._bin.target = ranges_path(self.prefix)
        self._log = RangeLog(self._bin.handle)

    def _put(self, tokens: np.ndarray) -> None:
        self._log.add(tokens)

    def close(self) -> MegatronFile:
        self._log.flush()
        self._publish()
        return MegatronFile(self.prefix, self.dtype, self.num_sequences, self.num_documents, self.num_tokens)


class _Recorded:
    """The ids of a recorded pair, by their numbers among all of them."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype

    def read(self, start: int, count: int) -> Any:
        return TokenRange(0, start, start + count, self._dtype)


def divide_recorded(
    spool: MegatronLayout, long: list[Pair], layout: MegatronLayout, shards: int
) -> tuple[list[Pair], list[PlannedFile]]:
    """``megatron_divide.divide`` of the recorded pairs ``long`` in ``spool``: the indices, and where the ids are.

    Raises:
        DataError: there are fewer documents with text than shards.
    """
    files = {
        prefix: MegatronFile(prefix, spool.dtype, pair.sequences, pair.documents, pair.tokens)
        for prefix, pair in ((spool.prefix(pair.part, pair.key), pair) for pair in long)
    }
    pairs = divide(
        spool,
        layout,
        shards,
        lambda tokens: None,
        opener=lambda prefix: (files[prefix], _Recorded(spool.dtype)),
        writer_type=MegatronRecorder,
    )
    return pairs, [_of_spool(spool, planned_pair(layout, pair), pair.key) for pair in pairs]


def _of_spool(spool: MegatronLayout, file: PlannedFile, key: str) -> PlannedFile:
    """A part by the ranges of the long pair; its own say which of those ids it has: one run of them."""
    first = int(read_ranges(file.ranges)["start"][0])
    return replace(file, ranges=ranges_path(spool.prefix(0, key)), first=first)


def planned_shard(path: Path, tokens: int) -> PlannedFile:
    """The file of a recorded shard; ``path`` is that of its ranges, as ``ShardInfo`` has it."""
    name, index = path.with_suffix(".bin").name, bos_index_path(path)
    return PlannedFile(name, index.name, path, index, 0, tokens)


def planned_pair(layout: MegatronLayout, pair: Pair) -> PlannedFile:
    """The token file of a recorded pair."""
    prefix = layout.prefix(pair.part, pair.key)
    name, index = bin_path(prefix).name, idx_path(prefix)
    return PlannedFile(name, index.name, ranges_path(prefix), index, 0, pair.tokens)
