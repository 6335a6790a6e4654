"""Order of the samples of Megatron files: what Megatron's own and the stateless one share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_cli.data.files.open_files import TokenShards
from automodel_cli.data.interface import BlendStats
from automodel_cli.data.megatron.gpt_index import SampleShape, normalize
from automodel_cli.data.megatron.parts import Part
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class OrderSettings:
    """What decides an order beside the data. ``surplus``: by how much more is asked of each part of a blend."""

    split: str
    shape: SampleShape
    seed: int
    surplus: float = 0.005
    pad_id: int = -1


class SampleOrder(ABC):
    """Samples of the blend of some parts, by number.

    Args:
        parts: of which files they are.
        shards: the readers of their ``.bin`` files, by the number of the part.
        weights: of the parts, not necessarily adding up to 1; None: in proportion to what they hold.
        size: samples wanted; None: one epoch of every part.

    Raises:
        ConfigError: weights without a size, or a weight that is not above 0.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: OrderSettings,
        shards: TokenShards,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        if weights is not None and size is None:
            raise ConfigError(
                "weights in dataset.paths need a number of samples to be shares of",
                "set step_scheduler.max_steps, or num_train_samples, num_val_samples or num_test_samples",
            )
        self.parts, self.settings = parts, settings
        for number, weight in enumerate(weights or (), start=1):
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(
                    f"weight {number} in dataset.paths is {weight:g}; it must be above 0",
                    "leave that prefix out, or give it a weight",
                )
        self.weights = None if weights is None else normalize(weights)
        self._shards = shards

    @abstractmethod
    def __len__(self) -> int:
        """Samples in all, which may be more than were asked for."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What decides the order beside the data, as JSON values; not how many samples of it are wanted."""

    @abstractmethod
    def blend_stats(self, samples: int) -> list[BlendStats]:
        """What each part gives to the first ``samples``."""

    @abstractmethod
    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, K]``, the number of the part first."""

    @abstractmethod
    def position(self, offset: Sequence[int], column: int) -> tuple[int, int]:
        """The part, and the token in its ``.bin``, of a column of the row at ``offset``."""

    @abstractmethod
    def stretches(self, offset: Sequence[int]) -> list[tuple[int, int]]:
        """(first token, end) in the part's ``.bin`` of each piece of the row at ``offset``, in order."""

    @abstractmethod
    def _copy(self, offset: Sequence[int], row: np.ndarray) -> None:
        """Copy one sample into ``row`` (int64 ``[T + 1]``), ``pad_id`` where it has no token."""

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at ``offsets`` (int64 ``[B, K]``) into ``out`` (int64 ``[B, T + 1]``)."""
        for part in set(offsets[:, 0].tolist()):
            self._check_files(part)
        for offset, row in zip(offsets.tolist(), out, strict=True):
            self._copy(offset, row)

    def read(self, sample_number: int, row: np.ndarray) -> int:
        """Copy one sample into ``row`` (int64 ``[T + 1]``); the part it is from."""
        offsets = self.sample_offsets(np.array([sample_number]))
        self.read_windows(offsets, row[None])
        return int(offsets[0, 0])

    def _check_files(self, part: int) -> None:
        """Refuse files that were cut off since they were opened: what is mapped must not be read then."""
        self._shards.checked(part)
