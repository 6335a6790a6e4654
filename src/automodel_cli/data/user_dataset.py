"""A user's own data set, brought into the global order of samples: what torch's DataLoader is given.

**Map-style** (``__len__`` and ``__getitem__``): only our index lists go in; the order is the sampler's.

**Iterable**: one endless stream of items, epoch after epoch, of which update ``u`` owns items
``[u * G, (u + 1) * G)``:

| the data set ...                          | then                                                        |
|-------------------------------------------|-------------------------------------------------------------|
| declares nothing                          | every rank reads the whole stream and keeps its own rows    |
| has ``shard(num_shards, index)``, or is   | each rank reads its shard only                              |
| a Hugging Face ``IterableDataset``        |                                                             |
| declares ``shards_ranks = True``          | it divides itself: each rank keeps everything it is given   |
| declares ``shards_workers = True``, or is | each worker process keeps everything it is given            |
| a Hugging Face ``IterableDataset``        |                                                             |
| declares neither, and there are workers   | one worker process reads: the order is that without workers |

An update is handed out only when its last item was seen, by every rank, so all ranks end on the same update.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from automodel_cli.data.interface import length_of
from automodel_cli.data.permutation import Permutation
from automodel_cli.data.sampler import BatchShape
from automodel_cli.errors import DataError


def is_iterable_style(dataset: Any) -> bool:
    """Whether ``dataset`` can only be iterated: an ``IterableDataset``, or one without index or length."""
    if isinstance(dataset, IterableDataset):
        return True
    return not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))


def identity_of(dataset: Any) -> dict[str, Any]:
    """What can be known of a foreign data set: its class, length, and fingerprint if it has one."""
    fingerprint = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    return {
        "dataset": type(dataset).__qualname__,
        "length": length_of(dataset),
        "data": fingerprint if isinstance(fingerprint, str) else None,
    }


def index_batches(
    shape: BatchShape, length: int, first_sample: int, updates: int | None, permutation: Permutation | None
) -> Iterator[list[int]]:
    """The index lists of one rank's micro-batches from ``first_sample`` on: torch's ``batch_sampler``.

    Args:
        updates: how many updates; None never ends.
        permutation: None reads in index order.
    """
    done = 0
    while updates is None or done < updates:
        numbers = shape.samples(first_sample + done * shape.global_batch_size)
        epochs, slots = np.divmod(numbers.ravel(), length)
        indices = slots if permutation is None else permutation(slots, epochs)
        yield from indices.reshape(-1, shape.local_batch_size).tolist()
        done += 1


@dataclass(frozen=True)
class Sharding:
    """Which divisions of the work a data set does by itself."""

    ranks: bool
    workers: bool


def declared_sharding(dataset: Any) -> Sharding:
    """What ``dataset`` declares to divide by itself (see the table above)."""
    workers = getattr(dataset, "shards_workers", _is_hugging_face(dataset))
    return Sharding(bool(getattr(dataset, "shards_ranks", False)), bool(workers))


def shard_of_rank(dataset: Any, shape: BatchShape) -> tuple[Any, Sharding]:
    """What of an iterable data set this rank reads, and how it is divided from there on."""
    sharding = declared_sharding(dataset)
    if shape.dp_world == 1 or sharding.ranks:
        return dataset, sharding
    if _is_hugging_face(dataset):
        from datasets.distributed import split_dataset_by_node  # its module is loaded: the object is of it

        shard = split_dataset_by_node(dataset, rank=shape.dp_rank, world_size=shape.dp_world)
    elif callable(getattr(dataset, "shard", None)):
        shard = dataset.shard(num_shards=shape.dp_world, index=shape.dp_rank)
    else:
        return dataset, sharding
    return shard, Sharding(ranks=True, workers=sharding.workers)


def _is_hugging_face(dataset: Any) -> bool:
    return type(dataset).__module__.split(".")[0] == "datasets"


def notes_on_sharding(dataset: Any, sharding: Sharding, dp_world: int, num_workers: int) -> list[str]:
    """What an iterable data set leaves to us, and how it may be read faster."""
    name, notes = type(dataset).__name__, []
    if dp_world > 1 and not sharding.ranks:
        notes.append(
            f"{name} has no shard(num_shards, index): each of {dp_world} ranks reads all of it and keeps its own rows. "
            "Give it that method and each reads its shard only; where it divides itself by rank already, it has to "
            "say so: shards_ranks = True"
        )
    if num_workers > 1 and not sharding.workers:
        notes.append(
            f"{name} does not say that it divides itself over worker processes (shards_workers = True): "
            f"1 of {num_workers} reads it"
        )
    return notes


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
        self.dataset, self.sharding, self.num_epochs = dataset, sharding, num_epochs
        self.epoch = 0
        self._skip_items = skip_items
        self._continues = False  # the first pass starts inside an epoch
        if state is not None:
            self._go_to(state)

    def _go_to(self, state: dict[str, Any]) -> None:
        self.epoch, self._continues = state["epoch"], True
        self.dataset.load_state_dict(state["dataset"])

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
        for items in self._updates():
            yield from items

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


class StatefulRankStream(RankStream):
    """``RankStream`` in the worker processes of torchdata's loader, which asks after each micro-batch where it is.

    The state is that of the data set before the present update, and how much of the update was handed out.
    """

    _before_update: dict[str, Any] | None = None
    _handed_out = 0

    def __iter__(self) -> Iterator[Any]:
        skipped, self._before_update = self._handed_out, self.state()
        for items in self._updates():
            for number in range(skipped, len(items)):
                self._handed_out = number + 1
                yield items[number]
            skipped, self._handed_out, self._before_update = 0, 0, self.state()

    def state_dict(self) -> dict[str, Any]:
        """Where it is, as JSON."""
        return {**(self._before_update or self.state()), "handed_out": self._handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._go_to(state)
        self._before_update = {"epoch": state["epoch"], "dataset": state["dataset"]}
        self._handed_out = state["handed_out"]


def has_own_state(dataset: Any) -> bool:
    """Whether ``dataset`` can say where it is and go on from there."""
    return all(callable(getattr(dataset, name, None)) for name in ("state_dict", "load_state_dict"))
