"""What the training loop iterates over. One item = the micro-batches of ONE update on this rank.

- ``TokenLoader`` serves token windows (``NanogptDataset`` and whatever else can ``locate`` and ``gather``).
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.arguments import TorchLoaderArguments
from automodel_cli.data.collate import as_batch, default_collate, refuse_unshifted
from automodel_cli.data.packing import Pack, Packing, Read, Start, batch_of_packs, row_of, windows
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.data.position import PlannedLoader, checked_position
from automodel_cli.data.prefetch import prefetch_to_device
from automodel_cli.data.sampler import BatchShape, batch_shape
from automodel_cli.data.user_dataset import (
    IndexBatches,
    RankStream,
    has_own_state,
    identity_of,
    is_iterable_style,
    length_of,
    own_sharding,
    shard_of_rank,
)
from automodel_cli.data.windows import TokenWindows, batch_of, buffers, is_token_windows, prefetch_on_host
from automodel_cli.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

_LOCATE_SAMPLES = 4096  # samples located at a time: 0.1 us each then, where one alone costs 100 us
_RING = 3  # buffers: the update in use, the one before it, the one being read


# ------------------------------------------------------------------------------------- token windows


class TokenLoader(PlannedLoader):
    """Micro-batches straight from token files: one copy, from the file's mapping into a reused buffer.

    Args:
        num_epochs: None never ends.
        device: on a CUDA device batches arrive there, copied one update ahead from page-locked memory; elsewhere
            they stay on the CPU.
        prefetch: read one update ahead in a thread. "auto" starts to do so at the first read that stalls, on
            data that is not in memory; the order of samples is not affected.
    """

    def __init__(
        self,
        dataset: TokenWindows,
        *,
        global_batch_size: int,
        local_batch_size: int,
        dp_rank: int = 0,
        dp_world: int = 1,
        num_epochs: int | None = 1,
        device: torch.device | str = "cpu",
        prefetch: bool | Literal["auto"] = "auto",
    ) -> None:
        shape = batch_shape(
            global_batch_size=global_batch_size,
            local_batch_size=local_batch_size,
            dp_rank=dp_rank,
            dp_world=dp_world,
        )
        super().__init__(dataset.plan(), len(dataset), shape, num_epochs)
        self.dataset = dataset
        self.device = torch.device(device)
        self.prefetch = prefetch

    def __iter__(self) -> Iterator[list[Batch]]:
        """The updates from the present position on."""
        for batches in prefetch_to_device(prefetch_on_host(self._filled(), self.prefetch), self.device):
            self.samples_consumed += self.shape.global_batch_size
            yield batches

    def _filled(self) -> Iterator[list[Batch]]:
        pinned = self.device.type == "cuda"
        ring = buffers(self.dataset, self.shape, count=_RING, pin_memory=pinned)
        for places, slot in zip(self._places(), itertools.cycle(ring), strict=False):
            yield slot.fill(self.dataset, places)

    def _places(self) -> Iterator[np.ndarray]:
        """Where the rows of each update lie: ``[M, B, ...]``, located many updates at a time."""
        first, left = self.samples_consumed, self.remaining_steps
        at_once = max(1, _LOCATE_SAMPLES // self.shape.samples_per_rank)
        while left is None or left > 0:
            updates = at_once if left is None else min(at_once, left)
            numbers = self.shape.samples(first, updates)
            places = self.dataset.locate(numbers.ravel())
            yield from places.reshape(*numbers.shape, *places.shape[1:])
            first += updates * self.shape.global_batch_size
            left = None if left is None else left - updates


# ---------------------------------------------------------------------------------- a user's data set


class TorchLoader(PlannedLoader):
    """A user's own data set through torch's DataLoader, in the global order and with a position.

    Map-style data sets resume exactly. Iterable ones resume by their own ``state_dict`` (``num_workers: 0``),
    else by reading again what was consumed, with a warning. How they are divided over ranks and workers:
    ``user_dataset``.

    Arguments: ``TorchLoaderArguments``.

    Raises:
        ConfigError: sizes that do not fit, or shuffle on an iterable.
        DataError: an empty data set.
    """

    @constructor_takes(TorchLoaderArguments)
    def __init__(self, options: TorchLoaderArguments) -> None:
        _refuse_other_orders(
            options.batch_size,
            options.local_batch_size,
            options.in_order,
            options.sampler,
            options.batch_sampler,
        )
        shape = batch_shape(
            global_batch_size=options.global_batch_size,
            local_batch_size=options.local_batch_size,
            dp_rank=options.dp_rank,
            dp_world=options.dp_world,
        )
        self.iterable = is_iterable_style(options.dataset)
        self.seed = options.seed
        self.notes: list[str] = []
        self.dataset, self._sharding = options.dataset, own_sharding(options.dataset)
        if self.iterable:
            self.dataset, self._sharding = shard_of_rank(options.dataset, shape)
        plan = self._plan(options.dataset, shape, options.shuffle, options.num_workers)
        divided = (
            self.iterable and own_sharding(options.dataset).ranks and options.dp_world > 1
        )  # is its length ours or all?
        super().__init__(plan, None if divided else length_of(options.dataset), shape, options.num_epochs)
        if self._windows == 0:
            raise DataError(f"{type(options.dataset).__name__} is empty", "check the arguments of dataset")
        self.shuffle = options.shuffle
        self._collate = _Collate(options.collate_fn or default_collate)
        self._torch: dict[str, Any] = {
            "num_workers": options.num_workers,
            "pin_memory": options.pin_memory and torch.cuda.is_available(),
        }
        if options.num_workers:
            self._torch.update(
                prefetch_factor=options.prefetch_factor,
                timeout=options.timeout,
                multiprocessing_context=options.multiprocessing_context,
                worker_init_fn=options.worker_init_fn,
            )
        self._stream: RankStream | None = None
        self._stream_state: dict[str, Any] | None = None
        apart = (
            self.iterable and self._sharding.ranks and options.dp_world > 1 and options.num_epochs is not None
        )
        self._any_rank = options.any_rank if options.any_rank is not None and apart else bool

    def _plan(self, dataset: Any, shape: BatchShape, shuffle: bool, num_workers: int) -> dict[str, Any]:
        """What decides the order; ranks and workers are in it only where the data set makes them matter."""
        if not self.iterable:
            order = ALGORITHM if shuffle else "file"
            seed = self.seed if shuffle else None
            return {"kind": "map", **identity_of(dataset), "order": order, "seed": seed}
        if shuffle:
            raise ConfigError(
                "dataloader.shuffle: true has no effect on an iterable data set",
                "shuffle inside the data set",
            )
        by_rank, by_worker = self._sharding.ranks, self._sharding.workers and num_workers > 0
        return {
            "kind": "iterable",
            **identity_of(dataset),
            "dp_world": shape.dp_world if by_rank else None,
            "num_workers": num_workers if by_worker else None,
        }

    @property
    def per_rank_state(self) -> bool:
        """Whether ``state_dict`` differs from rank to rank, so that each rank's must be kept."""
        return self._keeps_own_state

    @property
    def _keeps_own_state(self) -> bool:
        return self.iterable and has_own_state(self.dataset) and not self._torch["num_workers"]

    @property
    def epoch(self) -> int:
        """Epoch of the last sample handed out, as far as it is known (0 with workers and no length)."""
        return self._stream.epoch if self._stream is not None and self._windows is None else super().epoch

    @property
    def dropped_samples(self) -> int:
        """Samples at the very end that made no whole update; known of a stream once it has ended."""
        if self._stream is None:
            return super().dropped_samples
        return self._stream.leftover_items

    def __iter__(self) -> Iterator[list[Batch]]:
        """The updates from the present position on."""
        batches = self._batches()
        first = True
        while True:
            update = list(itertools.islice(batches, self.shape.grad_accum))
            if self._any_rank(len(update) < self.shape.grad_accum):
                return
            if first:
                refuse_unshifted(update[0])
                first = False
            self.samples_consumed += self.shape.global_batch_size
            yield update

    def _batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the present position on."""
        # Torch draws a base seed when iteration starts: from here, not from the model's generator.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.samples_consumed) % (1 << 63))
        settings: dict[str, Any] = {**self._torch, "collate_fn": self._collate, "generator": generator}
        if self.iterable:
            stream, discard = self._open_stream()
            loader = DataLoader(stream, batch_size=self.shape.local_batch_size, **settings)
        else:
            discard = 0
            loader = DataLoader(self.dataset, batch_sampler=self._indices(), **settings)
        return (Batch(**fields) for fields in itertools.islice(loader, discard, None))

    def _indices(self) -> Any:
        assert self._windows is not None
        permutation = Permutation(self._windows, seed=self.seed) if self.shuffle else None
        return IndexBatches(
            self.shape,
            length=self._windows,
            first_sample=self.samples_consumed,
            updates=self.remaining_steps,
            permutation=permutation,
        )

    def _open_stream(self) -> tuple[RankStream, int]:
        """The stream at the present position, or one at its start and how many micro-batches to discard."""
        skip = discard = 0
        if self._stream is not None and self.per_rank_state:  # iterated before, in this process
            self._stream_state = self._stream.state()
        if self._stream_state is None and self.samples_consumed:
            skip, discard = self._replay()
        self._stream = RankStream(
            self.dataset,
            self.shape,
            self._sharding,
            num_epochs=self.num_epochs,
            skip_items=skip,
            state=self._stream_state,
        )
        self._stream_state = None
        return self._stream, discard

    def _replay(self) -> tuple[int, int]:
        """(items to skip in each process, micro-batches to discard) to come to where the run was."""
        own = self.samples_consumed // self.shape.dp_world
        items = own if self._sharding.ranks else self.samples_consumed
        self._warn_of_replay(items)
        if not (self._sharding.workers and self._torch["num_workers"]):
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
            " (with num_workers: 0 its state_dict would be used)" if has_own_state(self.dataset) else "",
        )

    def _of_this_rank(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of ``state`` that this rank stored, where each rank has its own (``together``)."""
        parts = checked_position(state).by_dp_rank
        if not (self.per_rank_state and parts):
            return state
        part = parts[self.shape.dp_rank] if len(parts) == self.shape.dp_world else parts[0]
        return {**state, **part} if isinstance(part, dict) else state

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON; with the data set's own state, for this rank, where it has one.

        Raises:
            DataError: that state is not JSON.
        """
        state = super().state_dict()
        if self.per_rank_state and (self._stream is not None or self._stream_state is not None):
            own = self._stream_state if self._stream is None else self._stream.state()
            state["stream"] = {**(own or {}), "dp_rank": self.shape.dp_rank, "dp_world": self.shape.dp_world}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; call it before iterating.

        Raises:
            DataError: it belongs to another plan, or holds the data set's state of another rank or number of
                ranks.
        """
        super().load_state_dict(state)
        stream = checked_position(self._of_this_rank(state)).stream
        self._stream, self._stream_state = None, None
        if stream is None or not self.per_rank_state:
            return
        here = self.shape.dp_rank, self.shape.dp_world
        if self._sharding.ranks and (stream.dp_rank, stream.dp_world) != here:  # else all ranks read the same
            raise DataError(
                f"the data set's state is that of rank {stream.dp_rank} of {stream.dp_world}, "
                f"this is rank {self.shape.dp_rank} of {self.shape.dp_world}",
                "resume with the same number of data-parallel ranks",
            )
        self._stream_state = {"epoch": stream.epoch, "dataset": stream.dataset}


def _refuse_other_orders(
    batch_size: int | None, local_batch_size: int, in_order: bool, sampler: Any, batch_sampler: Any
) -> None:
    if batch_size not in (None, local_batch_size):
        raise ConfigError(
            f"dataloader.batch_size is {batch_size}, step_scheduler.local_batch_size {local_batch_size}",
            "leave batch_size out: local_batch_size says it",
        )
    if sampler is not None or batch_sampler is not None or not in_order:
        raise ConfigError(
            "dataloader.sampler, batch_sampler and in_order: false give an order that cannot be resumed",
            "use dataloader.shuffle, or order the items inside the data set",
        )


class _Collate:
    """A collate function's output as a dict of tensors, which torch can pin and send between processes."""

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        self.function = function

    def __call__(self, items: list[Any]) -> dict[str, torch.Tensor]:
        batch = as_batch(self.function(items))
        return {name: value for name, value in vars(batch).items() if value is not None}


# ---------------------------------------------------------------------------------------- evaluation


class EvalLoader:
    """One finite pass in file order (whatever the data set's shuffle says), the last short batch included.

    With several ranks each round of ``dp_world * local_batch_size`` rows is divided over them and all ranks
    yield
    equally many batches: a rank for which no rows are left gets one row without labels.

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
            raise ConfigError(
                f"local_batch_size is {local_batch_size}", "it counts sequences: give 1 or more"
            )
        if limit_batches is not None and limit_batches < 1:
            raise ConfigError(
                f"limit_val_batches is {limit_batches}", "give 1 or more, or null for the whole set"
            )
        self.dataset = dataset
        self.local_batch_size = local_batch_size
        self.limit_batches = limit_batches
        self.dp_rank = dp_rank
        self.dp_world = dp_world
        self.iterable = is_iterable_style(dataset)
        self._collate = _Collate(collate_fn or default_collate)
        self._divided = self.iterable and own_sharding(dataset).ranks
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
        if is_token_windows(self.dataset):
            return self._token_batches()
        if self.packing:
            return self._rounds(
                self._packs(self.packing), functools.partial(batch_of_packs, size=self.packing.size)
            )
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
            self.dataset.gather(self.dataset.locate_windows(np.array(rows)), tokens)
            yield _counted(batch_of(self.dataset, tokens), count)

    def _indexed_batches(self) -> Iterator[Batch]:
        indices: Sequence[list[int]] = [rows for rows, _ in self._rows()]
        loader = DataLoader(
            self.dataset,
            batch_sampler=indices,  # type: ignore[arg-type]
            collate_fn=self._collate,
            num_workers=self._num_workers,
            generator=torch.Generator().manual_seed(0),
        )
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
