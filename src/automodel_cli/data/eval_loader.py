"""One finite pass over a data set, divided over ranks, for validation and scores.

Shapes: B = ``local_batch_size`` rows, T tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.collate import collated, default_collate
from automodel_cli.data.interface import WindowDataset, length_of
from automodel_cli.data.packing import Pack, Packing, Read, Start, batch_of_packs, row_of, windows
from automodel_cli.data.read_ahead import announced
from automodel_cli.data.user_dataset import (
    declared_sharding,
    is_iterable_style,
)
from automodel_cli.errors import ConfigError, DataError


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
        self._collate = functools.partial(collated, function=collate_fn or default_collate)
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
        located = ((self.dataset.window_offsets(np.array(rows)), count) for rows, count in self._rows())
        ahead = announced(self.dataset, located, lambda one: one[0])
        for (offsets, count), buffer in zip(ahead, itertools.cycle(out), strict=False):
            tokens = buffer[: len(offsets)]
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
