"""A position in the data that can be saved: which order it is (the *plan*) and how far it was read.

The saved state is global: it knows no ranks, workers or batch sizes, so a run may resume with other ones. The
plan is a small JSON dict of everything that decides which sample is which; its hash decides whether a state
fits, and the plan itself travels along so that a refusal can say what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.data.sampler import BatchShape
from automodel_cli.data.skipped import MOST_RANGES
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes
from automodel_cli.json_files import Count, FileModel, Items, validated


def plan_hash(plan: dict[str, Any]) -> str:
    """``xxh3:...`` of a plan; equal plans give equal hashes whatever the order of their keys."""
    return hash_bytes(json.dumps(plan, sort_keys=True, ensure_ascii=False).encode())


MOST_SAMPLES = 2**53  # a position leaves room for the arithmetic of int64
MOST_SOURCES = 256  # of a data set; more are not told apart
Number = Annotated[int, Field(ge=0, le=MOST_SAMPLES)]


class StreamState(FileModel):
    """Where an iterable data set of a user's own was, on one rank."""

    epoch: Number
    dataset: Any
    dp_rank: Count
    dp_world: Count
    loader: Any = None  # torchdata's own state, where it reads the data set in worker processes
    num_workers: Count = 0


class PackPosition(FileModel):
    """Where packing was: the rows before the present window (``packing.Start``), and the packs taken from it."""

    row: Number = 0
    long_rows: Number = 0
    state_row: Number = 0
    taken: Number = 0
    epochs_done: Number = 0


class Position(FileModel):
    """A saved position, ``loader.json``."""

    plan_hash: str
    samples_consumed: Number
    plan: Any = None
    stream: StreamState | None = None
    packing: PackPosition | None = None
    by_dp_rank: list[Any] | None = None
    skipped: Annotated[
        Items[Annotated[Items[Number], Field(min_length=2, max_length=2)]], Field(max_length=MOST_RANGES)
    ] = ()


def checked_position(state: Any) -> Position:
    """A saved ``state`` as what it has to be.

    Raises:
        DataError: a key is missing, or a value of another type or out of range.
    """
    return validated(
        state,
        Position,
        "the saved position of the data",
        hint="the checkpoint is damaged or was written by another tool; start over with --fresh",
    )


def check_plan(state: dict[str, Any], plan: dict[str, Any]) -> None:
    """Refuse a saved ``state`` that belongs to another plan.

    Raises:
        DataError: it does; the message lists each key that differs, with both values.
    """
    if checked_position(state).plan_hash == plan_hash(plan):
        return
    stored = state.get("plan")
    differ = f"plan {state['plan_hash']} in the checkpoint, {plan_hash(plan)} now"
    if isinstance(stored, dict):
        pairs = {key: (stored.get(key), plan.get(key)) for key in sorted({*stored, *plan})}
        lines = [f"{key} {a!r} in the checkpoint, {b!r} now" for key, (a, b) in pairs.items() if a != b]
        differ = "; ".join(lines)
    raise DataError(
        f"the checkpoint was trained on other data or in another order: {differ}",
        "restore those settings to continue the run, or start a new one with --fresh "
        "(init_from takes the weights along)",
    )


class PlannedLoader:
    """A position in a plan, and the arithmetic of steps and epochs that follows from it."""

    def __init__(self, plan: dict[str, Any], windows: int | None, shape: BatchShape, num_epochs: int | None) -> None:
        self.plan = plan
        self.shape = shape
        self.num_epochs = num_epochs
        self.samples_consumed = 0
        self._windows = windows
        self.sizes = BatchSizes.of(shape.global_batch_size)
        self.latest = shape.global_batch_size  # samples of the latest update

    @property
    def samples_trained(self) -> int:
        """Samples that updates were made of; all that were consumed, where none are skipped."""
        return self.samples_consumed

    @property
    def of_latest(self) -> dict[str, Any]:
        """What is to be said of the latest update's rows, by its name in the log."""
        return {}

    @property
    def samples_per_epoch(self) -> int | None:
        """Samples of one epoch, or None where the data set has no length."""
        return self._windows

    @property
    def epoch_ended(self) -> bool:
        """Whether the last update was the first to reach (or pass) the end of an epoch."""
        if not self._windows:
            return False
        before = self._position_before
        return self.samples_consumed // self._windows > before // self._windows

    @property
    def _position_before(self) -> int:
        """Where the last update began."""
        return self.samples_consumed - self.latest

    @property
    def epoch(self) -> int:
        """Epoch of the last sample handed out (0 before the first)."""
        return max(self.samples_consumed - 1, 0) // self._windows if self._windows else 0

    @property
    def dropped_samples(self) -> int:
        """Number at the very end that make no whole global batch; 0 when there is no end."""
        left, steps = self._samples_left, self.remaining_steps
        return 0 if left is None or steps is None else left - self.sizes.samples(steps, self.samples_trained)

    @property
    def remaining_steps(self) -> int | None:
        """Updates from the present position to the end of the last epoch, or None when there is no end."""
        left = self._samples_left
        return None if left is None else self.sizes.updates(left, self.samples_trained)

    @property
    def _samples_left(self) -> int | None:
        if self._windows is None or self.num_epochs is None:
            return None
        return max(self._windows * self.num_epochs - self.samples_consumed, 0)

    def continue_from(self, state: Mapping[str, Any]) -> Any:
        """Go on from a position in another plan, where the data set can: what changes then. None: nothing does."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON: global, independent of ranks, workers and batch sizes."""
        return {
            "plan_hash": plan_hash(self.plan),
            "samples_consumed": self.samples_consumed,
            "plan": self.plan,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; call it before iterating. Batch sizes and ranks may have changed.

        Raises:
            DataError: it belongs to another plan.
        """
        check_plan(state, self.plan)
        self.samples_consumed = checked_position(state).samples_consumed
