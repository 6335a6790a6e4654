"""What the training loop iterates over. One item = the micro-batches of ONE update on this rank.

- ``TokenLoader`` serves token windows (``NanogptDataset`` and other ``WindowDataset``s).
  Its position is one integer and costs nothing to return to.
- ``TorchLoader`` serves a user's ``Dataset`` or ``IterableDataset`` through torch's DataLoader. Its position
  is one integer, the data set's own state, or a replay.
- ``PackedLoader`` (``packed_loader``) is the same with several rows in one sequence.
- ``EvalLoader`` makes one finite pass over either, in file order.

Shapes: M micro-batches, B = ``local_batch_size`` rows, T tokens. A batch of ``TokenLoader`` is a view of a
reused buffer: it stays as it is until the *next but one* update is asked for; clone what must live longer.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.data.arguments import TorchLoaderArguments
from automodel_cli.data.collate import as_batch, default_collate, refuse_unshifted
from automodel_cli.data.interface import WindowDataset, length_of
from automodel_cli.data.packing import Pack, Packing, Read, Start, batch_of_packs, row_of, windows
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.data.position import PlannedLoader, StreamState, check_plan, checked_position
from automodel_cli.data.prefetch import prefetch_on_host, prefetch_to_device
from automodel_cli.data.sampler import BatchShape
from automodel_cli.data.skipped import MOST_RANGES, Skipped
from automodel_cli.data.user_dataset import (
    RankStream,
    Sharding,
    StatefulRankStream,
    declared_sharding,
    has_own_state,
    identity_of,
    index_batches,
    is_iterable_style,
    notes_on_sharding,
    shard_of_rank,
)
from automodel_cli.data.windows import UpdateRows, read_updates, with_fields
from automodel_cli.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

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
        read = read_updates(self.dataset, largest, self._rows(), pin_memory=pin_memory)
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


class TorchLoader(PlannedLoader):
    """A user's own data set through torch's DataLoader, in the global order and with a position.

    Map-style data sets resume exactly. Iterable ones resume by their own ``state_dict`` (in worker processes where
    torchdata is installed), else by reading again what was consumed, with a warning. How they are divided over ranks
    and workers: ``user_dataset``.

    Arguments: ``TorchLoaderArguments``.

    Raises:
        ConfigError: sizes that do not fit, or shuffle on an iterable.
        DataError: an empty data set.
    """

    @constructor_takes(TorchLoaderArguments)
    def __init__(self, options: TorchLoaderArguments) -> None:
        _refuse_other_orders(options)
        shape = BatchShape(options.global_batch_size, options.local_batch_size, options.dp_rank, options.dp_world)
        dataset = options.dataset
        self.seed, self.shuffle = options.seed, options.shuffle
        self.notes: list[str] = []
        self.iterable = is_iterable_style(dataset)
        self.dataset, self._sharding = dataset, Sharding(ranks=False, workers=True)
        if self.iterable:
            self.dataset, self._sharding = shard_of_rank(dataset, shape)
            self.notes = notes_on_sharding(dataset, self._sharding, options.dp_world, options.num_workers)
        self._workers = options.num_workers if self._sharding.workers else min(options.num_workers, 1)
        # Where a data set divides itself, its length may be ours or that of all.
        divided = self.iterable and declared_sharding(dataset).ranks and options.dp_world > 1
        super().__init__(
            self._order(dataset, shape), None if divided else length_of(dataset), shape, options.num_epochs
        )
        if self._windows == 0:
            raise DataError(f"{type(dataset).__name__} is empty", "check the arguments of dataset")
        self._collate = functools.partial(_collated, function=options.collate_fn or default_collate)
        self._torch: dict[str, Any] = {
            "num_workers": self._workers,
            "pin_memory": options.pin_memory and torch.cuda.is_available(),
        }
        if self._workers:
            names = ("prefetch_factor", "timeout", "multiprocessing_context", "worker_init_fn")
            self._torch |= {name: getattr(options, name) for name in names}
        self._stream: RankStream | None = None
        self._stateful: Any = None  # torchdata's loader, where it reads the data set
        self._stored: StreamState | None = None  # of the data set, to go on from
        self._left_over = 0  # items at the very end that made no whole update
        apart = self.divided and options.num_epochs is not None
        self._any_rank = options.any_rank if options.any_rank is not None and apart else bool

    def _order(self, dataset: Any, shape: BatchShape) -> dict[str, Any]:
        """What decides the order; ranks and workers are in it only where the data set makes them matter."""
        if not self.iterable:
            order, seed = (ALGORITHM, self.seed) if self.shuffle else ("file", None)
            return {"kind": "map", **identity_of(dataset), "order": order, "seed": seed}
        if self.shuffle:
            raise ConfigError(
                "dataloader.shuffle: true has no effect on an iterable data set",
                "shuffle inside the data set",
            )
        return {
            "kind": "iterable",
            **identity_of(dataset),
            "dp_world": shape.dp_world if self._sharding.ranks else None,
            "num_workers": self._workers if self._sharding.workers and self._workers else None,
        }

    @property
    def divided(self) -> bool:
        """Whether each rank reads items of its own, of which another may have more or fewer."""
        return self._sharding.ranks and self.shape.dp_world > 1

    @property
    def per_rank_state(self) -> bool:
        """Whether ``state_dict`` differs from rank to rank, so that each rank's must be kept."""
        return self._keeps_own_state

    @property
    def _keeps_own_state(self) -> bool:
        """Whether the data set's own state says where it is: in this process, or by torchdata's loader in workers."""
        if not (self.iterable and has_own_state(self.dataset)):
            return False
        return not self._workers or _stateful_loader() is not None

    @property
    def epoch(self) -> int:
        """Epoch of the last sample handed out, as far as it is known (0 with workers and no length)."""
        return self._stream.epoch if self._stream is not None and self._windows is None else super().epoch

    @property
    def dropped_samples(self) -> int:
        """Samples at the very end that made no whole update; known of a stream once it has ended."""
        return super().dropped_samples if self._stream is None else self._stream.leftover_items

    def __iter__(self) -> Iterator[list[Batch]]:
        """The updates from the present position on."""
        items, wanted = self._items(), self._items_of_update
        for number in itertools.count():
            update = list(itertools.islice(items, wanted))
            if self._any_rank(len(update) < wanted):
                self._left_over = len(update)
                return
            batches = self._handed_out(update)
            if number == 0:
                refuse_unshifted(batches[0])
            self.samples_consumed += self.shape.global_batch_size
            yield batches

    @property
    def _items_of_update(self) -> int:
        """How many of ``_items`` this rank needs for one update."""
        return self.shape.grad_accum

    def _handed_out(self, items: list[Any]) -> list[Batch]:
        """The batches of one update."""
        return items

    def _items(self) -> Iterator[Any]:
        """What updates are made of, here this rank's micro-batches, from the present position on."""
        settings = {**self._torch_settings(self.samples_consumed), "collate_fn": self._collate}
        if self.iterable:
            return self._streamed(settings)
        assert self._windows is not None
        permutation = Permutation(self._windows, seed=self.seed) if self.shuffle else None
        position = self.samples_consumed, self.remaining_steps
        indices: Any = index_batches(self.shape, self._windows, *position, permutation)
        return (Batch(**fields) for fields in DataLoader(self.dataset, batch_sampler=indices, **settings))

    def _torch_settings(self, position: int) -> dict[str, Any]:
        """Arguments of torch's loader, which draws a base seed when it starts: from here, not from the model's."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + position) % (1 << 63))
        return {**self._torch, "generator": generator}

    def _streamed(self, settings: dict[str, Any]) -> Iterator[Batch]:
        """Micro-batches of an iterable data set, which goes to the present position by its state or by a replay."""
        if self._keeps_own_state and (self._stream or self._stateful):  # iterated before, in this process
            self._stored = self._stream_state()
        stored, self._stored = self._stored, None
        skip = discard = 0
        if stored is None and self.samples_consumed:
            skip, discard = self._replay()
        stateful = bool(self._workers) and self._keeps_own_state
        self._stream = (StatefulRankStream if stateful else RankStream)(
            self.dataset,
            self.shape,
            self._sharding,
            num_epochs=self.num_epochs,
            skip_items=skip,
            state=None if stored is None or self._workers else vars(stored),
        )
        loader: Any = _stateful_loader() if stateful else DataLoader
        opened = loader(self._stream, batch_size=self.shape.local_batch_size, **settings)
        if stateful:
            self._stateful = opened
            if stored is not None:
                opened.load_state_dict(stored.loader)
        return (Batch(**fields) for fields in itertools.islice(opened, discard, None))

    def _replay(self) -> tuple[int, int]:
        """(items to skip in each process, micro-batches to discard) to come to where the run was."""
        own = self.samples_consumed // self.shape.dp_world
        items = own if self._sharding.ranks else self.samples_consumed
        self._warn_of_replay(items)
        if not (self._sharding.workers and self._workers):
            return items, 0
        if own % self.shape.local_batch_size:
            raise DataError(
                f"{own} samples per rank were consumed, not a whole number of micro-batches of "
                f"{self.shape.local_batch_size}",
                "resume with the local_batch_size of the checkpoint",
            )
        return 0, own // self.shape.local_batch_size

    def _warn_of_replay(self, items: int) -> None:
        _log.warning(
            "%s has no usable state_dict: reading %d items again to come to where the run was%s",
            type(self.dataset).__name__,
            items,
            " (its state_dict is used with num_workers: 0, or where torchdata is installed)"
            if has_own_state(self.dataset)
            else "",
        )

    def _of_this_rank(self, state: dict[str, Any]) -> dict[str, Any]:
        """What of ``state`` this rank stored, where each rank has its own."""
        by_rank = checked_position(state).by_dp_rank
        if not (self.per_rank_state and by_rank):
            return state
        own = by_rank[self.shape.dp_rank] if len(by_rank) == self.shape.dp_world else by_rank[0]
        return {**state, **own} if isinstance(own, dict) else state

    def _stream_state(self) -> StreamState | None:
        """The data set's own state now; None before there is any."""
        rank = {"dp_rank": self.shape.dp_rank, "dp_world": self.shape.dp_world}
        if self._stateful is not None:
            return StreamState(
                epoch=0, dataset=None, loader=self._stateful.state_dict(), num_workers=self._workers, **rank
            )
        return self._stored if self._stream is None else StreamState(**self._stream.state(), **rank)

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON; with the data set's own state, for this rank, where it has one.

        Raises:
            DataError: that state is not JSON.
        """
        state = super().state_dict()
        own = self._stream_state() if self.per_rank_state else None
        return state if own is None else {**state, "stream": own.model_dump(exclude_defaults=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; call it before iterating.

        Raises:
            DataError: it belongs to another plan, or holds the data set's state of another rank or number of
                ranks.
        """
        super().load_state_dict(state)
        self._stream, self._stateful, self._stored = None, None, None
        stream = checked_position(self._of_this_rank(state)).stream
        if stream is None or not self.per_rank_state:
            return
        here = self.shape.dp_rank, self.shape.dp_world
        if self._sharding.ranks and (stream.dp_rank, stream.dp_world) != here:  # else all ranks read the same
            raise DataError(
                f"the data set's state is that of rank {stream.dp_rank} of {stream.dp_world}, "
                f"this is rank {self.shape.dp_rank} of {self.shape.dp_world}",
                "resume with the same number of data-parallel ranks",
            )
        if stream.num_workers == self._workers:  # that of worker processes is of no use to others
            self._stored = stream


def _stateful_loader() -> Any:
    """torchdata's loader, which brings the state of data sets out of worker processes; None where it is not."""
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        return None
    return StatefulDataLoader


def _refuse_other_orders(options: TorchLoaderArguments) -> None:
    if options.batch_size not in (None, options.local_batch_size):
        raise ConfigError(
            f"dataloader.batch_size is {options.batch_size}, "
            f"step_scheduler.local_batch_size {options.local_batch_size}",
            "leave batch_size out: local_batch_size sets it",
        )
    if options.sampler is not None or options.batch_sampler is not None or not options.in_order:
        raise ConfigError(
            "dataloader.sampler, batch_sampler and in_order: false give an order that cannot be resumed",
            "use dataloader.shuffle, or order the items inside the data set",
        )


def _collated(items: list[Any], function: Callable[[list[Any]], Any]) -> dict[str, torch.Tensor]:
    """A collate function's output as a dict of tensors, which torch can pin and send between processes."""
    return {name: value for name, value in vars(as_batch(function(items))).items() if value is not None}


class EvalLoader:
    """One finite pass in file order (whatever the data set's shuffle says), the last short batch included.

    With several ranks each round of ``dp_world * local_batch_size`` rows is divided over them, and all ranks
    yield equally many batches: a rank for which no rows are left gets one row without labels.

    Args:
        limit_batches: rounds at most; None for all.
        packing: the rows in packs; not for a data set that divides itself over the ranks, which may make unequally
            many of them.
        num_workers: worker processes, for a user's map-style data set.

    Raises:
        DataError: there is nothing to evaluate on (for an iterable, when it is iterated).
    """

    def __init__(
        self,
        dataset: Any,
        local_batch_size: int,
        *,
        limit_batches: int | None = None,
        dp_rank: int = 0,
        dp_world: int = 1,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        packing: Packing | None = None,
        num_workers: int = 0,
    ) -> None:
        if local_batch_size < 1:
            raise ConfigError(f"local_batch_size is {local_batch_size}", "it counts sequences: give 1 or more")
        if limit_batches is not None and limit_batches < 1:
            raise ConfigError(f"limit_val_batches is {limit_batches}", "give 1 or more, or null for the whole set")
        self.dataset, self.local_batch_size, self.limit_batches = dataset, local_batch_size, limit_batches
        self.dp_rank, self.dp_world = dp_rank, dp_world
        self.iterable = is_iterable_style(dataset)
        self._collate = functools.partial(_collated, function=collate_fn or default_collate)
        self._divided = self.iterable and declared_sharding(dataset).ranks
        self.packing = None if self._divided else packing
        self._warned = False  # of rows that are longer than a pack
        self._collate_fn = collate_fn
        self._num_workers = num_workers
        if not self.iterable and len(dataset) == 0:
            raise _nothing_to_evaluate(dataset)

    @property
    def num_batches(self) -> int | None:
        """Batches that each rank yields, or None where the data set has no length."""
        length = length_of(self.dataset)
        if length is None or self.packing:
            return self.limit_batches
        rounds = -(-length // (self.local_batch_size * self.dp_world))
        return rounds if self.limit_batches is None else min(rounds, self.limit_batches)

    def __iter__(self) -> Iterator[Batch]:
        """A new pass."""
        if isinstance(self.dataset, WindowDataset):
            return self._token_batches()
        if packing := self.packing:
            return self._rounds(self._packs(packing), lambda packs: batch_of_packs(packs, packing.size))
        if self.iterable:
            return self._rounds(self.dataset, lambda items: Batch(**self._collate(items)))
        return self._indexed_batches()

    def _rows(self) -> Iterator[tuple[list[int], bool]]:
        """This rank's row numbers in each round, and whether they count: at the end ranks may borrow one."""
        total, width = len(self.dataset), self.local_batch_size * self.dp_world
        assert self.num_batches is not None
        for number in range(self.num_batches):
            first = number * width + self.dp_rank * self.local_batch_size
            rows = list(range(first, min(first + self.local_batch_size, total)))
            yield rows or [number * width], bool(rows)

    def _token_batches(self) -> Iterator[Batch]:
        out = np.empty((2, self.local_batch_size, self.dataset.seq_len + 1), dtype=np.int64)
        for (rows, count), buffer in zip(self._rows(), itertools.cycle(out), strict=False):
            tokens = buffer[: len(rows)]
            offsets = self.dataset.window_offsets(np.array(rows))
            self.dataset.read_windows(offsets, tokens)
            batch = self.dataset.make_batch(tokens)
            if self.dataset.source_names:
                batch = replace(batch, sources=torch.from_numpy(self.dataset.sources_at(offsets)))
            yield _counted(batch, count)

    def _indexed_batches(self) -> Iterator[Batch]:
        indices: Any = [rows for rows, _ in self._rows()]
        generator = torch.Generator().manual_seed(0)
        settings: dict[str, Any] = {"num_workers": self._num_workers, "generator": generator}
        loader = DataLoader(self.dataset, batch_sampler=indices, collate_fn=self._collate, **settings)
        for fields, (_, count) in zip(loader, self._rows(), strict=True):
            yield _counted(Batch(**fields), count)

    def _packs(self, packing: Packing) -> Iterator[Pack]:
        items = self.dataset if self.iterable else (self.dataset[n] for n in range(len(self.dataset)))
        reads = (Read(0, row_of(item, self._collate_fn)) for item in items)
        for window in windows(reads, packing, Start()):
            if window.end.long_rows and not self._warned:
                self._warned = True
                packing.warn_of_long_rows(window.end, self.dataset)
            yield from window.packs

    def _rounds(self, items: Iterable[Any], collate: Callable[[list[Any]], Batch]) -> Iterator[Batch]:
        """Every rank reads all items and keeps its own, unless the data set divides itself."""
        width = self.local_batch_size * (1 if self._divided else self.dp_world)
        first = 0 if self._divided else self.dp_rank * self.local_batch_size
        left, number = iter(items), 0
        while self.limit_batches is None or number < self.limit_batches:
            row = list(itertools.islice(left, width))
            if not row:
                break
            mine = row[first : first + self.local_batch_size]
            yield _counted(collate(mine or row[:1]), bool(mine))
            number += 1
        if number == 0:
            raise _nothing_to_evaluate(self.dataset)


def _counted(batch: Batch, count: bool) -> Batch:
    """``batch``, or one whose labels are all ignored."""
    assert batch.labels is not None
    return batch if count else replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))


def _nothing_to_evaluate(dataset: Any) -> DataError:
    return DataError(
        f"the validation set ({type(dataset).__name__}) is empty",
        "check validation_dataset; without one, remove the section",
    )
