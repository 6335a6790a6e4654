"""The writers of both formats without the ids: indices as they will be, and the ranges that the ids come from.

``NAME.ranges`` takes the place of ``NAME.bin``; everything else is the format's own writer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.megatron_bin import MegatronFile, MegatronWriter, Synced, bin_path, idx_path
from automodel_cli.corpus.formats.nanogpt_bin import Layout, ShardInfo, ShardWriter, bos_index_path
from automodel_cli.corpus.jobs.arrangement import PlannedFile
from automodel_cli.corpus.jobs.token_range import RangeLog


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


def planned_shard(path: Path, tokens: int) -> PlannedFile:
    """The file of a recorded shard; ``path`` is that of its ranges, as ``ShardInfo`` has it."""
    name, index = path.with_suffix(".bin").name, bos_index_path(path)
    return PlannedFile(name, index.name, path, index, 0, tokens)


def planned_pair(layout: MegatronLayout, pair: Pair) -> PlannedFile:
    """The token file of a recorded pair."""
    prefix = layout.prefix(pair.part, pair.key)
    name, index = bin_path(prefix).name, idx_path(prefix)
    return PlannedFile(name, index.name, ranges_path(prefix), index, 0, pair.tokens)
