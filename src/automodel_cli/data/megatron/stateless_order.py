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

from automodel_cli.corpus.formats.nanogpt_bin import TokenReader
from automodel_cli.data.files.open_files import TokenShards
from automodel_cli.data.megatron.blending import StrideBlend
from automodel_cli.data.megatron.gpt_index import normalize
from automodel_cli.data.megatron.order import OrderSettings, above_zero
from automodel_cli.data.megatron.parts import BlendStats, Part
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.errors import ConfigError, DataError

_PURPOSE = "megatron windows"


class StatelessOrder:
    """Samples as a function of their number.

    Args:
        weights: of the parts; None: in proportion to their windows.
        size: samples wanted, any number; needed with weights, without them one epoch is the default. A set to
            evaluate on is not read more than once.
        shuffled: whether windows are permuted; weights need that.

    Raises:
        ConfigError: weights without a size or a shuffle, or a weight that is not above 0.
        DataError: nothing, or a part with a weight, holds a whole window.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: OrderSettings,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        shuffled: bool = True,
    ) -> None:
        self.parts, self.settings, self.shuffled = parts, settings, shuffled
        self.notes: list[str] = []
        self.windows = [max(part.tokens - settings.extra_token, 0) // settings.seq_len for part in parts]
        self._refuse_empty(weights is not None)
        self._first_window = np.concatenate([[0], np.cumsum(self.windows, dtype=np.int64)])
        self._first_token = np.array([part.first_token for part in parts], dtype=np.int64)
        self._weights = None if weights is None else normalize(above_zero(weights))
        if self._weights is None:
            self._blend: StrideBlend | None = None
            self._length = self._total if size is None else size
            if settings.split != "train":
                self._length = min(self._length, self._total)
            self._permutations = [Permutation(self._total, seed=settings.seed, purpose=_PURPOSE)]
        elif not shuffled:
            raise ConfigError(
                "weights in dataset.paths have no meaning with order: file",
                "leave them out, or use order: stateless",
            )
        elif size is None:
            raise ConfigError(
                "weights in dataset.paths need a number of samples to be shares of",
                "set step_scheduler.max_steps, or num_train_samples, num_val_samples or num_test_samples",
            )
        else:
            self._blend = StrideBlend(self._weights)
            self._length = size
            self._permutations = [
                Permutation(count, seed=settings.seed, purpose=f"{_PURPOSE} {number}")
                for number, count in enumerate(self.windows)
            ]
        self._tokens = TokenShards([part.file.tokens for part in parts], settings.mmap)

    @property
    def _total(self) -> int:
        return int(self._first_window[-1])

    def _refuse_empty(self, weighted: bool) -> None:
        empty = [part for part, count in zip(self.parts, self.windows, strict=True) if count == 0]
        needed = self.settings.seq_len + self.settings.extra_token
        if empty and (weighted or len(empty) == len(self.parts)):
            raise DataError(
                f"the {self.settings.split} split of {empty[0].prefix} holds {empty[0].tokens:,} tokens, "
                f"{needed:,} are needed",
                "give it a larger share in split, leave it out of paths, or shorten seq_length",
            )
        if empty:
            self.notes.append(
                f"{len(empty)} prefix(es) hold fewer than {needed:,} tokens in the {self.settings.split} split and are "
                f"left out (first: {empty[0].prefix})"
            )

    def __len__(self) -> int:
        """The samples wanted, or the windows of one epoch."""
        return self._length

    def drawn(self, samples: int | None = None) -> list[BlendStats]:
        """How many of ``samples`` (all) each part gives, and how often its tokens are read for them."""
        used, seq_len = len(self) if samples is None else samples, self.settings.seq_len
        shares = self._weights or [count / self._total for count in self.windows]
        return [
            BlendStats(part, share, round(share * used), share * used * seq_len / max(part.tokens, 1))
            for part, share in zip(self.parts, shares, strict=True)
        ]

    def plan(self) -> dict[str, Any]:
        """What decides the order beside the data, as JSON values."""
        if not self.shuffled:
            return {"order": "file", "seed": None, "weights": None}
        return {
            "order": f"stateless, {ALGORITHM}" + (f", {StrideBlend.ALGORITHM}" if self._blend else ""),
            "seed": self.settings.seed,
            "weights": self._weights,
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
        return np.stack([parts, self._first_token[parts] + within * self.settings.seq_len], axis=1)

    def reader(self, part: int) -> TokenReader:
        """The reader of a part's ``.bin``."""
        return self._tokens.reader(part)

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at ``offsets`` (int64 ``[B, 2]``) into ``out`` (int64 ``[B, T + 1]``)."""
        length = self.settings.seq_len + self.settings.extra_token
        for part in set(offsets[:, 0].tolist()):
            self._tokens.checked(part)
        for (part, start), row in zip(offsets.tolist(), out, strict=True):
            reader = self._tokens.reader(part)
            if reader.tokens is not None:
                row[:length] = reader.tokens[start : start + length]
            else:
                reader.read_into(start, row[:length])
            row[length:] = self.settings.pad_id

    def position(self, place: Sequence[int], column: int) -> tuple[int, int]:
        """The part, and the token in its ``.bin``, of a column of the row at ``place``."""
        return place[0], place[1] + column

    def read(self, sample_number: int, row: np.ndarray) -> int:
        """Copy one sample into ``row`` (int64 ``[T + 1]``); the part it is from."""
        offsets = self.sample_offsets(np.array([sample_number]))
        self.read_windows(offsets, row[None])
        return int(offsets[0, 0])
