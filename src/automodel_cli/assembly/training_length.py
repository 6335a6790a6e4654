"""How long a run is: from steps, epochs and the data to one number of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.horizon import Horizon
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.text import plural

Interval = int | Literal["final"] | None
_NEVER = 10**9


@dataclass(frozen=True)
class TrainingLength:
    """The number of updates of a run, and why it is that number."""

    total_steps: int
    sizes: BatchSizes  # samples of each update
    seq_len: int  # tokens of a sample
    reason: str
    timed: bool = False  # it ends with the time; ``total_steps`` is never reached
    seconds: float | None = None  # of a timed run, where they are known
    left_out: int = 0  # samples at the very end of the epochs that make no whole update

    @property
    def known_steps(self) -> int | None:
        """``total_steps``; None where only the time ends the run."""
        return None if self.timed else self.total_steps

    @property
    def total_tokens(self) -> int:
        """Tokens the whole run trains on."""
        return self.sizes.samples(self.total_steps) * self.seq_len


def plan_training_length(
    *,
    horizon: Horizon,
    num_epochs: int | None,
    samples: int | None,
    sizes: BatchSizes,
    seq_len: int,
) -> TrainingLength:
    """Updates of the run: those of its horizon, or what the epochs hold, or the smaller of the two.

    ``samples`` of ``num_epochs`` epochs (one where that is None), or None for a data set that has no length.

    Raises:
        ConfigError: neither the configuration nor the data says how long the run is.
        DataError: the data does not hold one global batch.
    """
    steps = None if samples is None else sizes.updates(samples)
    if horizon.timed:
        return TrainingLength(_NEVER, sizes, seq_len, horizon.reason, timed=True, seconds=horizon.seconds)
    wanted = horizon.steps
    if wanted is not None and (steps is None or num_epochs is None or wanted <= steps):
        return TrainingLength(wanted, sizes, seq_len, horizon.reason)
    if steps is None or samples is None:
        raise ConfigError(
            "the data set has no length and step_scheduler.max_steps is not set",
            "set step_scheduler.max_steps",
        )
    epochs = plural(num_epochs or 1, "epoch")
    if steps < 1:
        raise DataError(
            f"the training data ({epochs}) holds less than one global batch of {sizes.at(0) * seq_len:,} tokens",
            "lower step_scheduler.global_batch_size, shorten seq_len, raise num_epochs, or add data",
        )
    return TrainingLength(steps, sizes, seq_len, epochs, left_out=samples - sizes.samples(steps))


def due(step: int, *, every: Interval, last: int) -> bool:
    """Is something that happens every ``every`` updates due after update ``step`` (from 1) of ``last``?

    ``None`` is never, ``"final"`` only after the last update; every cadence includes the last update.
    """
    if every is None:
        return False
    return step == last or (every != "final" and step % every == 0)
