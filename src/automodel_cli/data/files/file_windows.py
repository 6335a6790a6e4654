"""Windows that are a stretch of one token file each, and how a batch of them is copied.

Shapes: B rows, T = ``seq_len`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import TokenFile
from automodel_cli.data.files.token_dataset import TokenFileDataset
from automodel_cli.data.fim import Fim
from automodel_cli.data.interface import Stretch, vocabulary_hint
from automodel_cli.errors import DataError


class FileWindows(TokenFileDataset):
    """Windows of T + 1 tokens at offsets (file, first token), where rows are rearranged (file, first token, sample)."""

    def __init__(self, files: Sequence[TokenFile], mmap: bool | Literal["auto"]) -> None:
        super().__init__(files, mmap)
        dtypes = {file.dtype for file in files}
        self._stored_dtype = dtypes.pop() if len(dtypes) == 1 else None  # None: the files differ
        self._fims: Sequence[Fim | None] = [None] * len(files)  # what becomes of rows of each file

    @property
    def token_dtype(self) -> np.dtype:
        """The widest type that tokens are stored in."""
        return max((file.dtype for file in self._files), key=lambda dtype: dtype.itemsize)

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the windows at ``offsets`` (int64 ``[B, 2 or 3]``) into ``out`` (int64 ``[B, T + 1]``).

        Rows of one shard are one copy: a strided one where they follow each other, as in file order.

        Raises:
            DataError: a file was changed meanwhile, or (after ``check_vocab``) an id without a row in the model.
        """
        shards, starts = offsets[:, 0].tolist(), offsets[:, 1].tolist()
        tokens = self._shards.checked(shards[0]).tokens
        if tokens is None or shards.count(shards[0]) < len(shards):
            largest = self._read_each(shards, starts, out)
        else:
            largest = self._read_mapped(tokens, starts, offsets[:, 1], out)
        self._check_ids(largest, out, offsets)
        if offsets.shape[1] > 2:
            self._rearrange(shards, offsets[:, 2].tolist(), out)

    def _rearrange(self, shards: list[int], samples: list[int], out: np.ndarray) -> None:
        for shard, sample, row in zip(shards, samples, out, strict=True):
            fim = self._fims[shard]
            if fim is not None:
                fim.rearrange(row, sample)

    def check_vocab(self, vocab_size: int) -> None:
        """As ``TokenFileDataset`` has it, marks of rearranged rows included."""
        super().check_vocab(vocab_size)
        largest = max((mark for fim in self._fims if fim is not None for mark in fim.marks), default=0)
        if largest >= vocab_size:
            raise DataError(f"fim: token id {largest:,} is a mark", vocabulary_hint(largest + 1, vocab_size))

    def _read_mapped(self, tokens: np.ndarray, starts: list[int], offsets: np.ndarray, out: np.ndarray) -> int:
        """Rows of one mapped shard; the largest id in them, 0 where it does not matter."""
        rows, stride, start = len(starts), self.seq_len, starts[0]
        if starts == list(range(start, start + rows * stride, stride)):
            out[:] = _rows_of(tokens, start, rows, stride, stride)
            return self._largest(tokens[start : start + rows * stride + 1])
        found = _rows_of(tokens, 0, len(tokens) - stride, 1, stride)[offsets]
        out[:] = found
        return self._largest(found)

    def _read_each(self, shards: list[int], starts: list[int], out: np.ndarray) -> int:
        """Rows of several shards, or of one that is not mapped, by a positional read each; the largest id as above.

        Such a read costs what asking a mapped file for its size does.
        """
        if self._stored_dtype is None:
            for shard, start, row in zip(shards, starts, out, strict=True):
                self._shards.reader(shard).read_into(start, row)
            return self._largest(out)
        found = np.empty(out.shape, self._stored_dtype)
        view, size, at = found.data.cast("B"), found.strides[0], 0
        for shard, start in zip(shards, starts, strict=True):
            self._shards.reader(shard).read_bytes(start, view[at : at + size])
            at += size
        out[:] = found
        return self._largest(found)

    def _largest(self, tokens: np.ndarray) -> int:
        return 0 if self._vocab_size is None else int(np.maximum.reduce(tokens, axis=None))

    def stretches(self, offset: np.ndarray) -> list[Stretch]:
        """As ``WindowDataset`` has it: one."""
        number, start = offset[:2].tolist()
        return [Stretch(self._source_of(number), self._files[number].path, start, start + self.seq_len + 1)]

    def _source_of(self, file: int) -> str | None:
        """The name of the source that a file is of."""
        return None

    def _extents(self, offset: np.ndarray) -> list[tuple[int, int, int]]:
        number, start = offset[:2].tolist()
        return [(number, start, start + self.seq_len + 1)]

    def _position(self, offset: np.ndarray, column: int) -> tuple[int, int]:
        shard, start = offset[:2].tolist()
        return shard, start + column

    @property
    def follow_each_other(self) -> bool:
        """As ``WindowDataset`` has it: yes."""
        return True


def _rows_of(tokens: np.ndarray, start: int, rows: int, stride: int, seq_len: int) -> np.ndarray:
    """``[rows, seq_len + 1]`` windows from ``start`` on, ``stride`` apart, as one view."""
    step = tokens.itemsize
    return np.ndarray(
        (rows, seq_len + 1), tokens.dtype, buffer=tokens, offset=start * step, strides=(stride * step, step)
    )
