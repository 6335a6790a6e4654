"""Whether weights may be saved now: a checkpoint of a run that has blown up is worth less than the one before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from automodel_cli.train.step import StepMetrics


@dataclass
class Soundness:
    """What the latest update said of the run."""

    latest: StepMetrics[float] | None = None  # its numbers, None before the first of this start
    owed: bool = False  # a save fell due when it could not be made; the next sound update makes up for it

    @property
    def last_loss(self) -> float | None:
        """Of the latest update."""
        return None if self.latest is None else self.latest.loss

    @property
    def diverged(self) -> bool:
        """Whether the latest loss is no number."""
        return self.latest is not None and not math.isfinite(self.latest.loss)

    def reason_not_to_save(self, *, at_the_end: bool) -> str | None:
        """Why a save must wait, as far as the latest update tells, or None.

        ``at_the_end``: no later update can make up for it, so one that was left out for its gradient alone (in fp16
        that happens now and then, and the weights stay as they were) is good enough.
        """
        if self.diverged:
            return "the loss is not finite"
        left_out = self.latest is not None and self.latest.skipped
        return "the gradient is not finite" if left_out and not at_the_end else None
