"""Where a training run is: everything a resume needs that is not a tensor or a position in the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, Items, validated


class _Stored(FileModel):
    """``train`` in state.json; a step is there, the rest may be missing in an old one."""

    step: Count
    epoch: Count = 0
    tokens_seen: Count = 0
    skipped_steps: Count = 0
    skipped_in_a_row: Count = 0
    best_val_loss: FiniteFloat | None = None
    recent_losses: Items[FiniteFloat] = ()


@dataclass
class TrainState:
    """Counters of a run, JSON in and out."""

    step: int = 0  # optimizer updates completed, skipped ones included
    epoch: int = 0  # passes over the data begun, from 0
    tokens_seen: int = 0  # tokens trained on, over all ranks
    skipped_steps: int = 0  # updates left out because loss or gradient was not finite
    # How many of the latest updates were skipped without one in between that was not
    skipped_in_a_row: int = 0
    best_val_loss: float = math.inf  # lowest validation loss so far, infinity before the first (null in JSON)
    # Losses of the latest updates, where their mean is logged; not in JSON while empty
    recent_losses: list[float] = field(default_factory=list)

    def advance(self, epoch: int, tokens: int) -> None:
        """Count one update, done or skipped, on ``tokens`` tokens of all ranks."""
        self.step += 1
        self.epoch = epoch
        self.tokens_seen += tokens

    def count_skip(self, skipped: bool) -> None:
        """Note whether the latest update was skipped."""
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def mean_loss(self, loss: float, window: int | None) -> float | None:
        """Note an update's loss and return the mean of the last ``window``; None: nobody asked for it."""
        if window is None:
            self.recent_losses.clear()
            return None
        if math.isfinite(loss):
            self.recent_losses = [*self.recent_losses, loss][-window:]
        return math.fsum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; JSON has no infinity, so no validation yet is null."""
        values = asdict(self)
        if not self.recent_losses:
            del values["recent_losses"]
        return values if math.isfinite(self.best_val_loss) else {**values, "best_val_loss": None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """The state that ``to_dict`` wrote.

        Raises:
            CheckpointError: a field is unknown or missing, or no number that it could be.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise CheckpointError(
                f"the training state has unknown fields {', '.join(unknown)}",
                "it was written by another version of automodel; resume with that one",
            )
        if "step" not in values:
            raise CheckpointError("the training state has no step", "the checkpoint is damaged; use an older one")
        stored = validated(values, _Stored, "the training state", CheckpointError, hint="use an older checkpoint")
        best = math.inf if stored.best_val_loss is None else stored.best_val_loss
        recent = list(stored.recent_losses)
        return cls(**{**stored.model_dump(), "best_val_loss": best, "recent_losses": recent})
