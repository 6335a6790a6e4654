"""``PackedLoader``: a user's data set with its rows packed (``packing``), in the global order and with a position.

The packs are numbered in one sequence for all ranks, and update ``u`` owns packs ``[u * G, (u + 1) * G)``. Which rows
share a pack is only known when they were read, so every rank reads all rows and keeps its own packs: the order is the
same for any number of ranks and workers, and a run may go on with others. A data set that is divided over the ranks
(``user_dataset``) is packed by each rank for itself.

The position is where the present window begins and how many of its packs were handed out; a resumed run reads that
window again. With worker processes the next window is read while one is trained on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from automodel_cli.batch import Batch
from automodel_cli.data.loader import TorchLoader
from automodel_cli.data.packing import (
    Pack,
    Packed,
    Packing,
    Read,
    Row,
    Start,
    Window,
    batch_of_packs,
    nothing_to_pack,
    real_tokens,
    row_of,
    windows,
)
from automodel_cli.data.permutation import Permutation
from automodel_cli.data.position import PackPosition, checked_position
from automodel_cli.data.prefetch import prefetch_on_host
from automodel_cli.data.user_dataset import EpochStream, has_own_state
from automodel_cli.data.windows import pinned

CHUNK_ROWS = 32  # that a worker sends at a time, and between which the state of a data set is asked for


class PackedLoader(TorchLoader):
    """Micro-batches of packs; arguments as ``TorchLoader``, sizes and ``samples_consumed`` count packs.

    Args:
        packing: how rows are packed.

    Attributes:
        efficiency: share of real tokens in the last update; None before the first.
        long_rows: rows longer than a pack, of those read so far.
        counted: what comes of the whole run, where somebody has counted it.

    Raises:
        ConfigError, DataError: as ``TorchLoader``; while it is iterated also for rows that are refused.
    """

    def __init__(self, dataset: Any, *, packing: Packing, collate_fn: Any = None, **options: Any) -> None:
        super().__init__(dataset, collate_fn=collate_fn, **options)
        self.packing = packing
        self.plan = {**self.plan, "packing": packing.plan()}
        self.rows_per_epoch = None if self.iterable else self._windows
        self._rows = self.rows_per_epoch or 0
        self._windows = None  # packs in an epoch are not known
        self._rows_of = functools.partial(_rows_of, collate=collate_fn)
        self._start, self._taken = Start(), 0  # of the window that the last pack was of
        self._epoch = self._epochs_done = 0
        self._epoch_ended = False
        self.long_rows = 0
        self.efficiency: float | None = None
        self.counted: Packed | None = None

    @property
    def of_latest(self) -> dict[str, Any]:
        """As ``PlannedLoader`` has it: how full the packs were, and rows that were too long so far."""
        long_rows = {"long_rows": self.long_rows} if self.long_rows else {}
        return {"packing_efficiency": self.efficiency, **long_rows}

    @property
    def per_rank_state(self) -> bool:
        """As ``TorchLoader``; ranks that pack for themselves have positions of their own too."""
        return self._keeps_own_state or self.divided

    @property
    def _keeps_own_state(self) -> bool:
        """As ``TorchLoader``, but not in worker processes: packing asks for the state itself."""
        return self.iterable and has_own_state(self.dataset) and not self._workers

    @property
    def epoch(self) -> int:
        """Epoch of the last pack handed out."""
        return self._epoch

    @property
    def epoch_ended(self) -> bool:
        """Whether the last update was the first to reach the end of an epoch, or to go beyond it."""
        return self._epoch_ended

    @property
    def dropped_samples(self) -> int:
        """Packs at the very end that made no whole update, once it was reached."""
        return self._left_over

    # ------------------------------------------------------------------------------------- updates

    @property
    def _items_of_update(self) -> int:
        """Packs of an update: every rank reads all of them, unless the data set is divided."""
        return self.shape.samples_per_rank if self.divided else self.shape.global_batch_size

    def _handed_out(self, items: list[tuple[Window, int, Pack]]) -> list[Batch]:
        """This rank's batches of one update, with which the position goes to the last of its packs."""
        own, rows, size = self.shape.samples_per_rank, self.shape.local_batch_size, self.packing.size
        packs = [pack for _, _, pack in items]
        self.efficiency = real_tokens(packs) / (len(packs) * size)
        window, self._taken, _ = items[-1]
        self._start, self._epoch = window.start, window.epoch
        done = window.epoch + (window.ends_epoch and self._taken == len(window.packs))
        self._epoch_ended, self._epochs_done = done > self._epochs_done, done
        first = 0 if self.divided else self.shape.dp_rank * own
        found = [batch_of_packs(packs[n : n + rows], size) for n in range(first, first + own, rows)]
        return [pinned(batch) for batch in found] if self._torch["pin_memory"] else found

    def _items(self) -> Iterator[tuple[Window, int, Pack]]:
        """Packs from the position on, each with its window and its number in it, from 1."""
        taken = self._taken
        found = windows(self._reads(self._start), self.packing, self._start, rows_per_epoch=self.rows_per_epoch)
        for window in prefetch_on_host(found, self._workers > 0):
            if window.end.long_rows and not self.long_rows:
                self.packing.warn_of_long_rows(window.end, self.dataset)
            self.long_rows = window.end.long_rows
            for number in range(taken, len(window.packs)):
                yield window, number + 1, window.packs[number]
            taken = 0

    # ---------------------------------------------------------------------------------------- rows

    def _reads(self, start: Start) -> Iterator[Read]:
        """The rows after ``start``, through torch's DataLoader."""
        settings = {**self._torch_settings(start.row), "pin_memory": False}
        if self.iterable:
            return self._streamed_rows(start, settings)
        end = None if self.num_epochs is None else self.num_epochs * self._rows
        return self._indexed(start.row, end, settings)

    def _indexed(self, first: int, end: int | None, settings: dict[str, Any]) -> Iterator[Read]:
        chunks = functools.partial(_chunks, first, end, self._rows)
        indices: Any = (self._slots(*numbers).tolist() for numbers in chunks())
        loader = DataLoader(self.dataset, batch_sampler=indices, collate_fn=self._rows_of, **settings)
        for rows, numbers in zip(loader, chunks(), strict=True):
            yield from (Read(numbers[0] // self._rows, row) for row in rows)

    def _slots(self, begin: int, end: int) -> np.ndarray:
        """Indices of the rows that have these numbers in the order of training."""
        epochs, slots = np.divmod(np.arange(begin, end), self._rows)
        return Permutation(self._rows, seed=self.seed)(slots, epochs) if self.shuffle else slots

    def _streamed_rows(self, start: Start, settings: dict[str, Any]) -> Iterator[Read]:
        skip, discard = start.row - start.state_row, 0
        if start.state is None and start.row:
            self._warn_of_replay(start.row)
            if self._sharding.workers and self._workers:
                skip, discard = 0, start.row
        stream = _RowStream(
            self.dataset,
            self._sharding,
            num_epochs=self.num_epochs,
            skip_items=skip,
            state=start.state,
            rows_of=self._rows_of,
            with_state=self._keeps_own_state,
        )
        loader = DataLoader(stream, batch_size=None, collate_fn=_unchanged, **settings)
        reads = itertools.accumulate(itertools.chain.from_iterable(loader), _not_back)
        return itertools.islice(reads, discard, None)

    # --------------------------------------------------------------------------- before the training

    def in_words(self) -> str:
        """How full packs are: counted before, else those of the first window, else (iterable) not known yet."""
        if self.counted is not None:
            return self.counted.in_words(self.packing)
        if self.iterable:
            return f"packs of {self.packing.size:,} tokens; how full they are is logged as packing_efficiency"
        return f"first {self.first_window().in_words(self.packing)}"

    def first_window(self) -> Packed:
        """What comes of the first window of a map-style data set, which is read for it.

        Raises:
            DataError: nothing.
        """
        reads = self._indexed(0, self._rows, {"generator": torch.Generator().manual_seed(0)})
        found = windows(reads, self.packing, Start(), rows_per_epoch=self._rows)
        window = next(found)
        if not window.packs:
            raise nothing_to_pack(window.end)
        return Packed(0, 0, 0, 0).with_window(window)

    def lengths(self, first: int, step: int) -> list[int]:
        """Lengths of rows first, first + step, ... in index order: the data set is read for it."""
        indices = range(first, self._rows, step)
        chunks = [list(indices[n : n + CHUNK_ROWS]) for n in range(0, len(indices), CHUNK_ROWS)]
        settings = {**self._torch, "pin_memory": False, "generator": torch.Generator().manual_seed(0)}
        loader = DataLoader(self.dataset, batch_sampler=chunks, collate_fn=self._rows_of, **settings)
        return [len(row) for rows in loader for row in rows]

    def all_windows(self, lengths: np.ndarray, num_epochs: int) -> Iterator[Window]:
        """The windows of a whole run over rows of these ``lengths``, with ranges in the place of rows."""
        chunks = _chunks(0, num_epochs * self._rows, self._rows, size=4096)
        reads = (
            Read(numbers[0] // len(lengths), range(length))
            for numbers in chunks
            for length in lengths[self._slots(*numbers)].tolist()
        )
        return windows(reads, self.packing, Start(), rows_per_epoch=self._rows)

    # ------------------------------------------------------------------------------------ position

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON; with the data set's own state where it has one."""
        start = self._start
        window = {name: value for name, value in vars(start).items() if name != "state"}
        packing = {**window, "taken": self._taken, "epochs_done": self._epochs_done}
        state = {**super(TorchLoader, self).state_dict(), "packing": packing}
        if self.per_rank_state:
            own = start.state or {"epoch": 0, "dataset": None}
            state["stream"] = {**own, "dp_rank": self.shape.dp_rank, "dp_world": self.shape.dp_world}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; call it before iterating.

        Raises:
            DataError: it belongs to another plan, or holds the state of another rank or number of ranks.
        """
        super().load_state_dict(state)
        own, self._stored = self._stored, None
        at = checked_position(self._of_this_rank(state)).packing or PackPosition()
        if own is not None and own.dataset is not None:
            known = {"epoch": own.epoch, "dataset": own.dataset}
            self._start = Start(at.row, at.long_rows, known, at.state_row)
        else:
            self._start = Start(at.row, at.long_rows)
        self._taken, self._epochs_done = at.taken, at.epochs_done
        self._epoch = at.epochs_done


def _chunks(first: int, end: int | None, per_epoch: int, *, size: int = CHUNK_ROWS) -> Iterator[tuple[int, int]]:
    """(begin, end) of consecutive rows from ``first`` to ``end`` (None: for ever), no chunk across epochs."""
    while end is None or first < end:
        after = min(first + size, (first // per_epoch + 1) * per_epoch)
        yield first, after
        first = after


class _RowStream(EpochStream):
    """Chunks of rows of an endless stream over a user's iterable data set, each of one epoch.

    With ``with_state`` the state of the data set goes along with the first row of each chunk: there it waits between
    two items, which it does not do at the end of an epoch.
    """

    def __init__(self, *args: Any, rows_of: Any, with_state: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rows_of, self._with_state = rows_of, with_state

    def __iter__(self) -> Iterator[list[Read]]:
        for epoch, state, items in self._chunks_of_items():
            rows = self._rows_of(items)
            yield [Read(epoch, row, None if n else state) for n, row in enumerate(rows)]

    def _chunks_of_items(self) -> Iterator[tuple[int, Any, list[Any]]]:
        epoch, state, items = 0, None, list[Any]()
        for item in self.items():
            if items and (len(items) == CHUNK_ROWS or self.epoch != epoch):
                yield epoch, state, items
                items = []
            if not items:
                epoch, state = self.epoch, self.state() if self._with_state else None
            items.append(item)
        if items:
            yield epoch, state, items


def _rows_of(items: Iterable[Any], collate: Any) -> list[Row]:
    return [row_of(item, collate) for item in items]


def _not_back(before: Read, read: Read) -> Read:
    """``read`` in the epoch of the worker that is furthest: those of unequal parts come to its end one by one."""
    return replace(read, epoch=max(before.epoch, read.epoch))


def _unchanged(chunk: Any) -> Any:
    return chunk
