"""A user's own data set, brought into the global order of samples: what torch's DataLoader is given.

**Map-style** (``__len__`` and ``__getitem__``): only our index lists go in; the order is the sampler's.

**Iterable**: one endless stream of items, epoch after epoch, of which update ``u`` owns items
``[u * G, (u + 1) * G)``:

| the data set ...                          | then                                                        |
|-------------------------------------------|-------------------------------------------------------------|
| says nothing of ranks                     | every rank reads the whole stream and keeps its own rows    |
| has ``shard(num_shards=, index=)``, or is | each rank reads its shard only                              |
| a Hugging Face ``IterableDataset``        |                                                             |
| divides itself over ranks                 | each rank keeps everything it is given                      |
| says nothing of workers                   | worker w of n keeps micro-batches w, w + n, ...: the order  |
|                                           | is the one without workers                                  |
| asks ``get_worker_info()``                | each worker keeps everything it is given                    |

"By itself" is read off the class: attributes ``shards_ranks`` and ``shards_workers`` (bool) where it has
them, else whether its methods mention ``get_worker_info``, ``get_rank`` or the environment's RANK.

An update is handed out only when its last item was seen, by every rank, so all ranks end on the same update.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from automodel_cli.data.permutation import Permutation
from automodel_cli.data.sampler import BatchShape
from automodel_cli.errors import DataError

_RANK_NAMES = {"get_rank", "get_world_size", "RANK", "WORLD_SIZE", "get_data_parallel_rank"}
_WORKER_NAMES = {"get_worker_info"}


def is_iterable_style(dataset: Any) -> bool:
    """Whether ``dataset`` can only be iterated: an ``IterableDataset``, or one without index or length."""
    if isinstance(dataset, IterableDataset):
        return True
    return not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))


def length_of(dataset: Any) -> int | None:
    """Items in one epoch, or None where the data set does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def identity_of(dataset: Any) -> dict[str, Any]:
    """What can be known of a foreign data set: its class, length, and fingerprint if it has one."""
    fingerprint = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    return {
        "dataset": type(dataset).__qualname__,
        "length": length_of(dataset),
        "data": fingerprint if isinstance(fingerprint, str) else None,
    }


class IndexBatches:
    """The index lists of one rank's micro-batches from ``first_sample`` on: torch's ``batch_sampler``.

    Args:
        updates: how many updates; None never ends.
        permutation: None reads in index order.
    """

    def __init__(
        self,
        shape: BatchShape,
        *,
        length: int,
        first_sample: int,
        updates: int | None,
        permutation: Permutation | None,
    ) -> None:
        self.shape = shape
        self.length = length
        self.first_sample = first_sample
        self.updates = updates
        self.permutation = permutation

    def __iter__(self) -> Iterator[list[int]]:
        done = 0
        while self.updates is None or done < self.updates:
            numbers = self.shape.samples(self.first_sample + done * self.shape.global_batch_size)
            epochs, slots = np.divmod(numbers.ravel(), self.length)
            indices = slots if self.permutation is None else self.permutation(slots, epochs)
            yield from indices.reshape(-1, self.shape.local_batch_size).tolist()
            done += 1


@dataclass(frozen=True)
class Sharding:
    """Which divisions of the work a data set does by itself."""

    ranks: bool
    workers: bool


def own_sharding(dataset: Any) -> Sharding:
    """Whether ``dataset`` divides itself over ranks and over workers (see the table above)."""
    names = _mentioned_names(type(dataset))
    ranks = getattr(dataset, "shards_ranks", None)
    workers = getattr(dataset, "shards_workers", None)
    return Sharding(
        ranks=bool(names & _RANK_NAMES) if ranks is None else bool(ranks),
        workers=bool(names & _WORKER_NAMES) if workers is None else bool(workers),
    )


def _mentioned_names(kind: type) -> set[str]:
    """Global and attribute names, and string constants, in a class' methods (torch's bases left out)."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in ("torch", "builtins", "typing", "collections"):
            continue
        for value in vars(base).values():
            function = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else None
            code = getattr(function, "__code__", None)
            if code is not None:
                _collect(code, names)
    return names


def _collect(code: CodeType, names: set[str]) -> None:
    names.update(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, str):
            names.add(constant)
        elif isinstance(constant, CodeType):  # nested functions and comprehensions
            _collect(constant, names)


def shard_of_rank(dataset: Any, shape: BatchShape) -> tuple[Any, Sharding]:
    """The part of an iterable data set that this rank should read, and how it is divided from there on."""
    sharding = own_sharding(dataset)
    if shape.dp_world == 1 or sharding.ranks:
        return dataset, sharding
    if type(dataset).__module__.split(".")[0] == "datasets":
        from datasets.distributed import split_dataset_by_node  # its module is loaded: the object is of it

        part = split_dataset_by_node(dataset, rank=shape.dp_rank, world_size=shape.dp_world)
    elif callable(getattr(dataset, "shard", None)):
        part = dataset.shard(num_shards=shape.dp_world, index=shape.dp_rank)
    else:
        return dataset, sharding
    return part, Sharding(ranks=True, workers=sharding.workers)


class EpochStream(IterableDataset[Any]):
    """The items of a user's iterable data set, epoch after epoch, from a position on.

    Args:
        skip_items: items that were consumed before (a replay), counted from ``state`` where it is given.
        state: what ``state()`` returned; the data set's own state then says where to go on.
    """

    def __init__(
        self,
        dataset: Any,
        sharding: Sharding,
        *,
        num_epochs: int | None,
        skip_items: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.sharding = sharding
        self.num_epochs = num_epochs
        self.epoch = 0
        self._skip_items = skip_items
        self._continues = state is not None  # the first pass starts inside an epoch
        if state is not None:
            self.epoch = state["epoch"]
            dataset.load_state_dict(state["dataset"])

    def turn(self) -> tuple[int, int]:
        """(n, w): this process takes pieces w, w + n, ... of the stream; (1, 0) where it takes all it is given."""
        worker = get_worker_info()
        alone = worker is None or self.sharding.workers
        return (1, 0) if alone or worker is None else (worker.num_workers, worker.id)

    def items(self) -> Iterator[Any]:
        """Items of all epochs from the saved position on."""
        to_skip = self._skip_items
        while self.num_epochs is None or self.epoch < self.num_epochs:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(self.epoch)
            found = 0
            for item in self.dataset:
                found += 1
                if to_skip:
                    to_skip -= 1
                else:
                    yield item
            if found == 0 and not self._continues:
                raise DataError(
                    f"{type(self.dataset).__name__} yields nothing in epoch {self.epoch}",
                    "an iterable data set must yield items each time it is iterated",
                )
            self._continues = False
            self.epoch += 1

    def state(self) -> dict[str, Any]:
        """Where the data set is, in its own words, as JSON; exact while ``items`` waits after an item.

        Raises:
            DataError: its ``state_dict`` holds something that JSON cannot.
        """
        own = self.dataset.state_dict()
        try:
            return {"epoch": self.epoch, "dataset": json.loads(json.dumps(own))}
        except (TypeError, ValueError) as error:
            raise DataError(
                f"state_dict() of {type(self.dataset).__name__} is not JSON: {error}",
                "return numbers, strings, lists and dicts with string keys only",
            ) from error


class RankStream(EpochStream):
    """The items of one rank (and worker) of an endless stream over a user's iterable data set.

    ``state()`` is exact between updates and without worker processes.
    """

    def __init__(self, dataset: Any, shape: BatchShape, sharding: Sharding, **options: Any) -> None:
        super().__init__(dataset, sharding, **options)
        self.shape = shape
        self.leftover_items = 0  # of the last, incomplete update, once the stream has ended

    def __iter__(self) -> Iterator[Any]:
        workers, mine = self.turn()
        rows, micro_batch = self.shape.local_batch_size, 0
        for items in self._updates():
            for first in range(0, len(items), rows):
                if micro_batch % workers == mine:
                    yield from items[first : first + rows]
                micro_batch += 1

    def _updates(self) -> Iterator[list[Any]]:
        """This rank's items of each complete update."""
        per_rank, per_update = self.shape.samples_per_rank, self.shape.global_batch_size
        first = 0 if self.sharding.ranks else self.shape.dp_rank * per_rank
        last = per_rank if self.sharding.ranks else per_update
        kept: list[Any] = []
        seen = 0
        for item in self.items():
            if first <= seen < first + per_rank:
                kept.append(item)
            seen += 1
            if seen == last:
                yield kept
                kept, seen = [], 0
        self.leftover_items = seen


def has_own_state(dataset: Any) -> bool:
    """Whether ``dataset`` can say where it is and go on from there."""
    return all(callable(getattr(dataset, name, None)) for name in ("state_dict", "load_state_dict"))
