"""The order of a mixture: which window of which source a sample is, as a function of its number.

Stages follow each other; in each the weights are fixed, or move in a straight line (a *ramp*, in up to 64 pieces of
fixed weights). A piece repeats one period (``pattern``), so what a source has given before any sample is a sum of three
numbers: before the piece, in whole periods, and in the last one. Where a stage ends, each source's count goes on: no
change of weights moves it.

After any number of samples a source has given what its weights say, to less than a window, in each stage.

Shapes: N sources, K samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automodel_cli.data.mixture.pattern import pattern, quotas, rounded

ALGORITHM = "deadlines/1"  # named in every plan: another rule is another order of the data
_RAMP_PIECES = 64
_RAMP_PERIOD = 256  # samples, of a piece of a ramp


_Stretch = tuple[int, tuple[int, ...]]  # first sample, and the quotas from there on


@dataclass(frozen=True)
class Stage:
    """Weights from sample ``first`` on; with ``ramp_from`` they come from there and arrive at the stage's end."""

    first: int
    weights: tuple[float, ...]
    ramp_from: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Piece:
    """A stretch of fixed weights that begins with sample ``first``, before which the sources gave ``given`` [N]."""

    first: int
    given: np.ndarray
    quota: tuple[int, ...]


class MixtureOrder:
    """Stages, of which the last has no end.

    Args:
        stages: in order, the first from sample 0 on; the last is no ramp.
        first: sample from which on the stages decide; those before it were another order's.
        given: windows that each source had given before ``first``, int ``[N]``; none where that is 0.
    """

    def __init__(self, stages: Sequence[Stage], first: int = 0, given: Sequence[int] | None = None) -> None:
        assert stages and stages[0].first == 0 and stages[-1].ramp_from is None
        self.stages = tuple(stages)
        self.first = first
        self._pieces: list[_Piece] = []
        counts = np.array(given or [0] * len(stages[0].weights), dtype=np.int64)
        stretches = _from(first, _stretches(stages))
        for (begin, quota), following in zip(stretches, [*stretches[1:], None], strict=True):
            self._pieces.append(_Piece(begin, counts, quota))
            if following is not None:
                counts = counts + _given_within(quota, following[0] - begin)
        self._firsts = np.array([piece.first for piece in self._pieces])

    def stage_at(self, sample: int) -> Stage:
        """The stage that a sample belongs to."""
        return next(stage for stage in reversed(self.stages) if stage.first <= sample)

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, its window) of samples ``numbers``, int64 ``[K]`` each; a source's windows count on for ever."""
        sources, windows = np.empty_like(numbers), np.empty_like(numbers)
        pieces = self.pieces_of(numbers)
        for number in np.unique(pieces).tolist():
            mine, piece = pieces == number, self._pieces[number]
            chosen, before = _period(piece.quota)
            periods, places = np.divmod(numbers[mine] - piece.first, len(chosen))
            found = chosen[places]
            sources[mine] = found
            windows[mine] = piece.given[found] + periods * np.asarray(piece.quota)[found] + before[places]
        return sources, windows

    def shares(self) -> np.ndarray:
        """The share of each source in each piece of fixed weights, fp64 ``[pieces, N]``; each row adds up to 1."""
        quotas = np.array([piece.quota for piece in self._pieces], dtype=np.float64)
        return quotas / quotas.sum(1, keepdims=True)

    def pieces_of(self, numbers: np.ndarray) -> np.ndarray:
        """In which of the pieces (rows of ``shares``) samples are, int64 ``[K]``."""
        return np.searchsorted(self._firsts, numbers, side="right") - 1

    def given(self, samples: int) -> np.ndarray:
        """Windows of each source in the first ``samples`` samples, int64 ``[N]``."""
        piece = self._pieces[int(np.searchsorted(self._firsts, samples, side="right")) - 1]
        return piece.given + _given_within(piece.quota, samples - piece.first)


def _from(first: int, stretches: list[_Stretch]) -> list[_Stretch]:
    """The stretches after ``first``, and the rest of the one that it is in."""
    begun = [quota for begin, quota in stretches if begin <= first]
    return [(first, begun[-1]), *(stretch for stretch in stretches if stretch[0] > first)]


def _stretches(stages: Sequence[Stage]) -> list[_Stretch]:
    """(first sample, quotas) of each piece of fixed weights; ramps are cut at whole periods."""
    found = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        if stage.ramp_from is None:
            found.append((stage.first, tuple(quotas(stage.weights))))
            continue
        assert following is not None
        length = following.first - stage.first
        period = max(min(_RAMP_PERIOD, length // 8), len(stage.weights))
        count = max(min(_RAMP_PIECES, length // period), 1)
        begin, end = np.asarray(stage.ramp_from), np.asarray(stage.weights)
        for piece in range(count):
            middle = (piece + 0.5) / count
            weights = (begin / begin.sum() * (1 - middle) + end / end.sum() * middle).tolist()
            first = stage.first + length * piece // count // period * period
            found.append((first, tuple(rounded(weights, period))))
    return found


@functools.lru_cache(maxsize=256)
def _period(quota: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each place of a period, and how many windows of that source come before it there."""
    chosen = pattern(quota)
    places = np.argsort(chosen, kind="stable")
    firsts = np.cumsum(quota) - quota
    before = np.empty_like(chosen)
    before[places] = np.arange(len(chosen)) - np.repeat(firsts, quota)
    return chosen, before


def _given_within(quota: tuple[int, ...], samples: int) -> np.ndarray:
    """Windows of each source in the first ``samples`` samples of a piece."""
    periods, rest = divmod(samples, sum(quota))
    given = periods * np.asarray(quota, dtype=np.int64)
    return given + np.bincount(_period(quota)[0][:rest], minlength=len(quota)) if rest else given
