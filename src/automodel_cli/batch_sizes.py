"""How many samples each update learns from, and numbers that change by stages of a run. Pure integers, no tensors.

Stages are counted in samples: a position in the data is a number of samples, so what an update is made of follows from
where it begins, whatever was done to the configuration before.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Staged:
    """A number that changes by stages: (first sample, number) of each, the first from sample 0 on, in order."""

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.stages]
        assert firsts[:1] == [0] and sorted(set(firsts)) == firsts and all(number > 0 for _, number in self.stages)

    def at(self, sample: int) -> int:
        """The number of the stage that ``sample`` is in."""
        return self.stages[bisect.bisect_right(self.stages, (sample, math.inf)) - 1][1]

    @property
    def numbers(self) -> list[int]:
        """Those of the stages, in order."""
        return [number for _, number in self.stages]

    @property
    def changes(self) -> bool:
        """Whether there is more than one stage."""
        return len(self.stages) > 1


class BatchSizes(Staged):
    """The global batch size of each update: that of the stage in which the update begins.

    A stage ends with the update that reaches the next one's first sample, so stages made by ``by_ends`` hold whole
    updates, and a position that an earlier configuration has left off their grid is none the less one of some stage.
    """

    @classmethod
    def of(cls, size: int | BatchSizes) -> BatchSizes:
        """``size``, one number as a schedule of it."""
        return size if isinstance(size, BatchSizes) else cls(((0, size),))

    @classmethod
    def by_ends(cls, sizes: Sequence[int], ends: Sequence[int]) -> BatchSizes:
        """Stages of ``sizes``, each but the last up to the first update that reaches its end, in samples."""
        stages, first = [], 0
        for size, end in zip(sizes, [*ends, None], strict=True):
            stages.append((first, size))
            if end is not None:
                first += max(-(-(end - first) // size), 1) * size
        return cls(tuple(stages))

    @property
    def last(self) -> int:
        """The size at the end of a run."""
        return self.stages[-1][1]

    def stretches(self, start: int = 0) -> Iterator[tuple[int, int, int | None]]:
        """(first sample, size, number of updates) of equal updates in turn from ``start`` on; the last has no end."""
        begun = [stage for stage in self.stages if stage[0] <= start][-1:]
        stages = begun + [stage for stage in self.stages if stage[0] > start]
        for number, (_, size) in enumerate(stages):
            following = stages[number + 1][0] if number + 1 < len(stages) else None
            if following is None:
                yield start, size, None
            elif following > start:
                updates = -(-(following - start) // size)
                yield start, size, updates
                start += updates * size

    def samples(self, updates: int, start: int = 0) -> int:
        """Samples in ``updates`` updates, the first of which begins at sample ``start``."""
        found = 0
        for _, size, many in self.stretches(start):
            here = updates if many is None else min(updates, many)
            found, updates = found + here * size, updates - here
            if not updates:
                break
        return found

    def updates(self, samples: int, start: int = 0) -> int:
        """Whole updates in ``samples`` samples from sample ``start`` on."""
        found, end = 0, start + samples
        for first, size, many in self.stretches(start):
            here = (end - first) // size
            if many is None or here < many:
                return found + max(here, 0)
            found += many
        raise AssertionError("the last stretch has no end")

    def end_of_update(self, sample: int) -> int:
        """The end of the update that reaches ``sample``: the first one there or beyond."""
        updates = self.updates(sample)
        whole = self.samples(updates)
        return whole if whole == sample else self.samples(updates + 1)
