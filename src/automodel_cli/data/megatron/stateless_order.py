"""Our own order of Megatron files: no index is built, the first batch comes at once, and there is no end.

Each part's tokens, as they lie in its file, are cut into windows of S + x tokens, S apart. Without weights sample
``k`` is window ``permutation(k)`` of all of them, anew in each epoch. With weights a fixed pattern says from which
part it is (``StrideBlend``), and each part's windows are permuted by themselves. Neither depends on how many
samples are wanted: a longer run sees what a shorter one saw, in the same order.

Unshuffled, sample ``k`` is window ``k`` of the files as they lie: for scoring all of some files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from automodel_cli.data.files.open_files import TokenShards
from automodel_cli.data.interface import BlendStats
from automodel_cli.data.megatron.blending import StrideBlend
from automodel_cli.data.megatron.parts import Part
from automodel_cli.data.megatron.sample_order import OrderSettings, SampleOrder
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.errors import ConfigError, DataError

_PURPOSE = "megatron windows"


class StatelessOrder(SampleOrder):
    """Samples as a function of their number.

    Args:
        size: samples wanted, any number; needed with weights, without them one epoch is the default. A set to
            evaluate on is not read more than once.
        shuffled: whether windows are permuted; weights need that.

    Raises:
        ConfigError: as ``SampleOrder``, or weights without a shuffle.
        DataError: nothing, or a part with a weight, holds a whole window.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: OrderSettings,
        shards: TokenShards,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        shuffled: bool = True,
    ) -> None:
        if weights is not None and not shuffled:
            raise ConfigError(
                "weights in dataset.paths have no meaning with order: file",
                "leave them out, or use order: stateless",
            )
        super().__init__(parts, settings, shards, weights=weights, size=size)
        shape = settings.shape
        self.shuffled, self.notes = shuffled, list[str]()
        self.windows = [max(part.tokens - shape.extra_token, 0) // shape.seq_len for part in parts]
        empty = [part for part, count in zip(parts, self.windows, strict=True) if count == 0]
        needed = f"{shape.seq_len + shape.extra_token:,}"
        if empty and (self.weights is not None or len(empty) == len(parts)):
            raise DataError(
                f"the {settings.split} split of {empty[0].prefix} holds {empty[0].tokens:,} tokens, "
                f"{needed} are needed",
                "give it a larger share in split, leave it out of paths, or shorten seq_length",
            )
        if empty:
            self.notes.append(
                f"{len(empty)} prefix(es) hold fewer than {needed} tokens in the {settings.split} split and are "
                f"left out (first: {empty[0].prefix})"
            )
        self._first_window = np.concatenate([[0], np.cumsum(self.windows, dtype=np.int64)])
        self._first_token = np.array([part.first_token for part in parts], dtype=np.int64)
        self._total = int(self._first_window[-1])
        self._length = self._total if size is None else size
        if self.weights is not None:
            self._blend: StrideBlend | None = StrideBlend(self.weights)
            self._permutations = [
                Permutation(count, seed=settings.seed, purpose=f"{_PURPOSE} {number}")
                for number, count in enumerate(self.windows)
            ]
            return
        self._blend = None
        self._permutations = [Permutation(self._total, seed=settings.seed, purpose=_PURPOSE)]
        if settings.split != "train":
            self._length = min(self._length, self._total)

    def __len__(self) -> int:
        """The samples wanted, or the windows of one epoch."""
        return self._length

    def blend_stats(self, samples: int) -> list[BlendStats]:
        """What each part gives to so many samples."""
        shares = self.weights or [count / self._total for count in self.windows]
        return [
            part.stats(share, share * samples, self.settings.shape.seq_len)
            for part, share in zip(self.parts, shares, strict=True)
        ]

    def plan(self) -> dict[str, Any]:
        """As ``SampleOrder`` has it."""
        if not self.shuffled:
            return {"order": "file", "seed": None, "weights": None}
        return {
            "order": f"stateless, {ALGORITHM}" + (f", {StrideBlend.ALGORITHM}" if self._blend else ""),
            "seed": self.settings.seed,
            "weights": self.weights,
        }

    # --------------------------------------------------------------------------------------- reading

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, 2]`` of (part, first token in its ``.bin``)."""
        numbers = np.asarray(sample_numbers, dtype=np.int64).ravel()
        if self._blend is None:
            epochs, slots = np.divmod(numbers, self._total)
            windows = self._permutations[0](slots, epochs) if self.shuffled else slots
            parts = np.searchsorted(self._first_window, windows, side="right") - 1
            within = windows - self._first_window[parts]
        else:
            parts, within = self._blend(numbers)
            for part in np.unique(parts).tolist():
                mine = parts == part
                epochs, slots = np.divmod(within[mine], self.windows[part])
                within[mine] = self._permutations[part](slots, epochs)
        return np.stack([parts, self._first_token[parts] + within * self.settings.shape.seq_len], axis=1)

    def _copy(self, offset: Sequence[int], row: np.ndarray) -> None:
        part, start = offset
        length = self.settings.shape.seq_len + self.settings.shape.extra_token
        reader = self._shards.reader(part)
        if reader.tokens is not None:
            row[:length] = reader.tokens[start : start + length]
        else:
            reader.read_into(start, row[:length])
        row[length:] = self.settings.pad_id

    def stretches(self, offset: Sequence[int]) -> list[tuple[int, int]]:
        """As ``SampleOrder`` has it: one."""
        shape = self.settings.shape
        return [(offset[1], offset[1] + shape.seq_len + shape.extra_token)]

    def position(self, offset: Sequence[int], column: int) -> tuple[int, int]:
        """As ``SampleOrder`` has it."""
        return offset[0], offset[1] + column
