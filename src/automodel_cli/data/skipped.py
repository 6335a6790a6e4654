"""Samples that a run does not train on: ranges of their numbers, which its position keeps.

A run trains on the samples that are left, in their order: the ``t``-th of them is ``samples(t)``, which a binary search
over the ranges finds. So a position stays one integer, and a run that was told to skip samples from the beginning is
the run that went back and skipped them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

MOST_RANGES = 1000

Range = tuple[int, int]  # the first sample, and one past the last


@dataclass(frozen=True)
class Skipped:
    """Ranges that ascend and do not touch; made of any by ``of``."""

    ranges: tuple[Range, ...] = ()
    _begins: np.ndarray = field(init=False, repr=False, compare=False)  # how many samples are left before each range
    _sums: np.ndarray = field(init=False, repr=False, compare=False)  # samples in the ranges before each, and in all

    def __post_init__(self) -> None:
        sums = np.cumsum([0, *(end - first for first, end in self.ranges)], dtype=np.int64)
        begins = np.array([first for first, _ in self.ranges], dtype=np.int64) - sums[:-1]
        object.__setattr__(self, "_sums", sums)
        object.__setattr__(self, "_begins", begins)

    @classmethod
    def of(cls, ranges: Iterable[Sequence[int]]) -> Skipped:
        """All of some ranges, which may overlap; empty ones count for nothing."""
        found: list[Range] = []
        for first, end in sorted((int(first), int(end)) for first, end in ranges if first < end):
            if found and first <= found[-1][1]:
                found[-1] = found[-1][0], max(end, found[-1][1])
            else:
                found.append((first, end))
        return cls(tuple(found))

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """The samples that are left, by their numbers among these; int64 of any shape."""
        return numbers + self._sums[np.searchsorted(self._begins, numbers, side="right")] if self.ranges else numbers

    def left_before(self, sample: int) -> int:
        """How many of the first ``sample`` samples are left."""
        return sample - sum(min(end, sample) - first for first, end in self.ranges if first < sample)

    def covers(self, first: int, end: int) -> bool:
        """Whether all samples of a range are skipped."""
        return any(begin <= first and end <= stop for begin, stop in self.ranges)
