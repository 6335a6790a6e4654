"""Finite spikes: updates whose loss or gradient norm lies far above those of the updates before it.

The rule, for update n: of the last ``window`` accepted updates up to n - 2, take the losses and the logarithms of the
gradient norms; each gives a limit ``median + threshold * scale``, where ``scale`` is 1.4826 times the median absolute
deviation from the median (the standard deviation, for a normal distribution), of the loss at least ``LOSS_FLOOR``, of
the norm's logarithm at least ``NORM_FLOOR`` and at most ``NORM_CEILING``. The update is a spike if one of the two is
above its limit. Spikes are not accepted: they do not move the limits. Before ``MINIMUM`` updates are accepted there
are none.

Median and absolute deviation, since outliers hardly move them: B. Iglewicz, D. Hoaglin, How to Detect and Handle
Outliers (1993). The logarithm, since gradient norms vary by factors. Update n - 1 is left out because a GPU has not
told of it when update n begins; so a decision does not depend on the device, or on when a checkpoint was written.

``most_in_a_row`` spikes one after the other are a new level, not a spike (another mixture, a harder part of the data):
what was accepted before is forgotten, and the rule begins anew. So it cannot hold up a run for good.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, Items, validated
from automodel_cli.train.step import StepMetrics

MINIMUM = 48
"""Accepted updates before there are limits."""
LOSS_FLOOR = 0.02
"""Smallest scale of the loss, in nats: 200 updates that are all alike are no measure of what comes."""
NORM_FLOOR = 0.1
"""The same of the norm's logarithm: a tenth up or down."""
NORM_CEILING = 0.22
"""Largest scale of the norm's logarithm: with a threshold of 7 a norm above 4.7 times the median is a spike, however
much the norms of the window vary, which where they drift is no scatter."""
_NORMAL = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations


class Limits(NamedTuple):
    """What is a spike above; numbers of fp32, as losses and norms are."""

    loss: float = math.inf
    grad_norm: float = math.inf

    def exceeded_by(self, numbers: StepMetrics[float]) -> bool:
        """Whether these numbers, which are finite, are a spike."""
        return numbers.loss > self.loss or numbers.grad_norm > self.grad_norm

    def on(self, device: torch.device) -> Tensor:
        """fp32 ``[2]``, on its way to the device: nothing waits for it."""
        tensor = torch.tensor(self, dtype=torch.float32, pin_memory=device.type == "cuda")
        return tensor.to(device, non_blocking=True)


NO_LIMITS = Limits()


@dataclass(frozen=True)
class SpikeRule:
    """See the module."""

    window: int
    threshold: float
    most_in_a_row: int


class StoredLimits(FileModel):
    """Limits in a file; null: none."""

    loss: FiniteFloat | None
    grad_norm: FiniteFloat | None


class StoredSpikes(FileModel):
    """``spikes`` in state.json."""

    losses: Items[FiniteFloat]
    grad_norms: Items[FiniteFloat]
    limits: Items[StoredLimits]
    in_a_row: Count = 0
    seen: Count = 0


class SpikeDetector:
    """Judges one update after another.

    Attributes:
        seen: spikes of the run so far.
    """

    def __init__(self, rule: SpikeRule) -> None:
        self.rule = rule
        self._losses: deque[float] = deque(maxlen=rule.window)
        self._norms: deque[float] = deque(maxlen=rule.window)
        self._limits = (NO_LIMITS, NO_LIMITS)  # of the next update to be judged, and of the one after it
        self._in_a_row = 0
        self.seen = 0

    def limits(self, ahead: int = 0) -> Limits:
        """Those of the next update to be judged, or (1) of the one after it."""
        return self._limits[ahead]

    def judge(self, numbers: StepMetrics[float], *, agreed: bool = False) -> bool:
        """Whether the next update was a spike. One that is not finite is none, and changes nothing.

        ``agreed``: all ranks have left it out, though on this one it may be a hair below a limit.
        """
        limits, finite = self._limits[0], math.isfinite(numbers.loss) and math.isfinite(numbers.grad_norm)
        spike = finite and (agreed or limits.exceeded_by(numbers))
        if finite:
            self._take(numbers, spike)
        self._limits = (self._limits[1], self._new_limits())
        return spike

    def _take(self, numbers: StepMetrics[float], spike: bool) -> None:
        self.seen += spike
        self._in_a_row = self._in_a_row + 1 if spike else 0
        if not spike:
            self._losses.append(numbers.loss)
            self._norms.append(numbers.grad_norm)
        elif self._in_a_row >= self.rule.most_in_a_row:
            self._losses.clear()
            self._norms.clear()
            self._in_a_row = 0

    def _new_limits(self) -> Limits:
        if len(self._losses) < MINIMUM:
            return NO_LIMITS
        norms = [math.log(max(norm, _TINY)) for norm in self._norms]
        loss = self._limit(self._losses, LOSS_FLOOR, math.inf)
        norm = math.exp(min(self._limit(norms, NORM_FLOOR, NORM_CEILING), _LARGE))
        return Limits(_as_fp32(loss), _as_fp32(norm))

    def _limit(self, values: Sequence[float], floor: float, ceiling: float) -> float:
        middle = statistics.median(values)
        spread = statistics.median(abs(value - middle) for value in values)
        return middle + self.rule.threshold * min(max(_NORMAL * spread, floor), ceiling)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        limits = [
            {name: number if math.isfinite(number) else None for name, number in one._asdict().items()}
            for one in self._limits
        ]
        accepted = {"losses": list(self._losses), "grad_norms": list(self._norms)}
        return {**accepted, "limits": limits, "in_a_row": self._in_a_row, "seen": self.seen}

    def restore(self, stored: Any) -> None:
        """Go on as the one did that ``to_dict`` was asked of; with another ``window`` from what that has kept.

        Raises:
            CheckpointError: ``stored`` is nothing that it gives.
        """
        found = validated(stored, StoredSpikes, "the state of spikes", CheckpointError, hint="use an older checkpoint")
        if len(found.limits) != 2 or len(found.losses) != len(found.grad_norms):
            raise CheckpointError("the state of spikes has lists that do not fit", "use an older checkpoint")
        self._losses = deque(found.losses, maxlen=self.rule.window)
        self._norms = deque(found.grad_norms, maxlen=self.rule.window)
        first, second = (
            Limits(**{name: math.inf if number is None else number for name, number in one.model_dump().items()})
            for one in found.limits
        )
        self._limits, self._in_a_row, self.seen = (first, second), found.in_a_row, found.seen


_TINY = 1e-30  # a norm of 0 has no logarithm
_LARGE = 80.0  # e to this is near the largest fp32


def _as_fp32(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()
