"""Micro-batches of one update after another, straight from token files.

The position is one integer and costs nothing to return to. Shapes: M micro-batches, B = ``local_batch_size`` rows, T
tokens. A batch is a view of a reused buffer: it stays as it is until the *next but one* update is asked for; clone what
must live longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.position import PlannedLoader, check_plan, checked_position
from automodel_cli.data.prefetch import prefetch_on_host, prefetch_to_device
from automodel_cli.data.read_ahead import announced
from automodel_cli.data.sampler import BatchShape
from automodel_cli.data.skipped import MOST_RANGES, Skipped
from automodel_cli.data.windows import UpdateRows, read_updates, with_fields
from automodel_cli.errors import ConfigError

_SAMPLES_AT_ONCE = 4096  # samples located at a time: 0.1 us each then, where one alone costs 100 us


class TokenLoader(PlannedLoader):
    """Micro-batches straight from token files: one copy, from the file's mapping into a reused buffer.

    Args:
        global_batch_size: samples of an update, or a schedule of them.
        num_epochs: None never ends.
        row_lengths: tokens of a row by the sample that an update begins with, divisors of T: rows are cut into such;
            None: rows are windows.
        device: on a CUDA device batches arrive there, copied one update ahead from page-locked memory; elsewhere
            they stay on the CPU.
        prefetch: read one update ahead in a thread. "auto" starts to do so at the first read that stalls, on
            data that is not in memory; the order of samples is not affected.
        skip: samples never to be trained on, as (first, one past the last).
    """

    def __init__(
        self,
        dataset: WindowDataset,
        *,
        global_batch_size: int | BatchSizes,
        local_batch_size: int,
        dp_rank: int = 0,
        dp_world: int = 1,
        num_epochs: int | None = 1,
        row_lengths: Staged | None = None,
        device: torch.device | str = "cpu",
        prefetch: bool | Literal["auto"] = "auto",
        skip: Iterable[Sequence[int]] = (),
    ) -> None:
        sizes = BatchSizes.of(global_batch_size)
        self._shapes = {size: BatchShape(size, local_batch_size, dp_rank, dp_world) for size in sizes.numbers}
        super().__init__(dataset.plan(), len(dataset), self._shapes[sizes.last], num_epochs)
        self.sizes = sizes
        self.row_lengths = row_lengths
        self._told = self.skipped = _few_enough(Skipped.of(skip))
        self.last_samples = (0, 0)  # first of the last update's, and one past its last: skipped ones may lie between
        self.dataset = dataset
        self.device = torch.device(device)
        self.prefetch = prefetch
        self._began_at = 0
        self._accepted: str | None = None  # hash of another plan, from a position in which this one goes on

    def __iter__(self) -> Iterator[list[Batch]]:
        """The updates from the present position on."""
        pin_memory = self.device.type == "cuda"
        largest = self._shapes[max(self._shapes)]
        rows = announced(self.dataset, self._rows(), lambda update: update.offsets)
        read = read_updates(self.dataset, largest, rows, pin_memory=pin_memory)
        trained = self.samples_trained
        for batches in prefetch_to_device(prefetch_on_host(read, self.prefetch), self.device):
            self.latest = self.sizes.at(trained)
            first, last = self.skipped.samples(np.array([trained, trained + self.latest - 1])).tolist()
            self._began_at, self.last_samples = self.samples_consumed, (first, last + 1)
            cut = self._cut(batches, trained)
            self.samples_consumed, trained = last + 1, trained + self.latest
            yield cut

    @property
    def samples_trained(self) -> int:
        """Samples that were trained on: those consumed without those skipped. Stages of a schedule count these."""
        return self.skipped.left_before(self.samples_consumed)

    def _cut(self, batches: list[Batch], first: int) -> list[Batch]:
        """The batches of the update that begins with sample ``first``, in rows as long as they are by then."""
        if self.row_lengths is None or (seq_len := self.row_lengths.at(first)) == self.dataset.seq_len:
            return batches
        return [batch.cut(seq_len) for batch in batches]

    @property
    def of_latest(self) -> dict[str, Any]:
        """As ``PlannedLoader`` has it: how many rows and how long, where that changes."""
        size = {"global_batch_size": self.latest} if self.sizes.changes else {}
        lengths, first = self.row_lengths, self.samples_trained - self.latest
        return size if lengths is None else {**size, "seq_len": lengths.at(first)}

    def continue_from(self, state: Mapping[str, Any]) -> Any:
        """As ``PlannedLoader`` has it; afterwards ``load_state_dict`` takes that ``state``."""
        stored = checked_position(state)
        change = self.dataset.continue_from(stored.plan, stored.samples_consumed)
        self.plan = self.dataset.plan()
        self._accepted = None if change is None else stored.plan_hash
        return change

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As ``PlannedLoader`` has it."""
        stored = checked_position(state)
        if stored.plan_hash != self._accepted:
            check_plan(state, self.plan)
        self.skipped = self._skipped_with(stored.skipped, stored.samples_consumed)
        self.samples_consumed = stored.samples_consumed

    def _skipped_with(self, stored: Iterable[Sequence[int]], consumed: int) -> Skipped:
        """What a position that was saved skips, and what this run was told to.

        Raises:
            ConfigError: it was told to skip what was trained on before that position, or the two are too many ranges.
        """
        before = Skipped.of(stored)
        for first, end in self._told.ranges:
            if first < consumed and not before.covers(first, min(end, consumed)):
                raise ConfigError(
                    f"spikes.skip_samples has samples {first:,} to {end:,}, the run is at sample {consumed:,} already",
                    "go on from an earlier checkpoint (checkpoint.restore_from), or start over with --fresh",
                )
        return _few_enough(Skipped.of((*before.ranges, *self._told.ranges)))

    def state_dict(self) -> dict[str, Any]:
        """As ``PlannedLoader`` has it; with the samples that are skipped, where there are such."""
        state = super().state_dict()
        return {**state, "skipped": [list(one) for one in self.skipped.ranges]} if self.skipped else state

    @property
    def _position_before(self) -> int:
        return self._began_at

    @property
    def _samples_left(self) -> int | None:
        left = super()._samples_left
        return left and self.skipped.left_before(self.samples_consumed + left) - self.samples_trained

    def _rows(self) -> Iterator[UpdateRows]:
        """The rows of each update."""
        left = self.remaining_steps
        for first, size, updates in self.sizes.stretches(self.samples_trained):
            here = left if updates is None or left is None else min(updates, left)
            yield from self._of_equal_updates(self._shapes[size], first, updates if left is None else here)
            left = None if left is None or here is None else left - here

    def _of_equal_updates(self, shape: BatchShape, first: int, left: int | None) -> Iterator[UpdateRows]:
        """The same of ``left`` equal updates (None: without end), located many at a time.

        ``first`` is that of the samples that are left, as ``samples_trained`` counts.
        """
        at_once = max(1, _SAMPLES_AT_ONCE // shape.samples_per_rank)
        while left is None or left > 0:
            updates = at_once if left is None else min(at_once, left)
            yield from self._located(self.skipped.samples(shape.samples(first, updates)))
            first += updates * shape.global_batch_size
            left = None if left is None else left - updates

    def _located(self, numbers: np.ndarray) -> Iterator[UpdateRows]:
        """The rows of the samples ``numbers``, int64 ``[updates, M, B]``."""
        offsets = self.dataset.sample_offsets(numbers.ravel())
        by_update = offsets.reshape(*numbers.shape, *offsets.shape[1:])
        if not self.dataset.source_names:
            return map(UpdateRows, by_update)
        sources = self.dataset.sources_at(offsets)
        fields = {"sources": sources}
        if self.dataset.objective is not None:
            fields["row_weights"] = self.dataset.row_weights(numbers.ravel(), sources)
        values = {name: found.reshape(numbers.shape) for name, found in fields.items()}
        return with_fields(by_update, pin_memory=self.device.type == "cuda", **values)


def _few_enough(skipped: Skipped) -> Skipped:
    """``skipped``, which a position has to be able to keep."""
    if len(skipped.ranges) > MOST_RANGES:
        raise ConfigError(
            f"{len(skipped.ranges):,} separate ranges of samples are skipped (spikes.skip_samples), at most "
            f"{MOST_RANGES:,} can be",
            "join neighbours: ranges that touch are one",
        )
    return skipped
