"""What the training loop iterates over. One item = the micro-batches of ONE update on this rank.

- ``TokenLoader`` (``token_loader``) serves token windows (``NanogptDataset`` and other ``WindowDataset``s).
- ``TorchLoader`` serves a user's ``Dataset`` or ``IterableDataset`` through torch's DataLoader. Its position
  is one integer, the data set's own state, or a replay.
- ``PackedLoader`` (``packed_loader``) is the same with several rows in one sequence.
- ``EvalLoader`` (``eval_loader``) makes one finite pass over either, in file order.

Shapes: M micro-batches, B = ``local_batch_size`` rows, T tokens.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import Batch
from automodel_cli.data.arguments import TorchLoaderArguments
from automodel_cli.data.collate import collated, default_collate, refuse_unshifted
from automodel_cli.data.interface import length_of
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.data.position import PlannedLoader, StreamState, checked_position
from automodel_cli.data.sampler import BatchShape
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
from automodel_cli.errors import ConfigError, DataError

_log = logging.getLogger(__name__)


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
        self._collate = functools.partial(collated, function=options.collate_fn or default_collate)
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
