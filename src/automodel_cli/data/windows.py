"""Token windows into batches.

Shapes: M micro-batches, B rows, T tokens; K numbers say where a row lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.sampler import BatchShape

_RING = 3  # buffers: the update in use, the one before it, the one being read


@dataclass(frozen=True)
class UpdateRows:
    """The rows of one update.

    Attributes:
        offsets: where they lie, int64 ``[M, B, K]``.
        sources: of which source they are, int64 ``[M, B]``; None: not told apart.
        row_weights: what the gradient of their tokens is multiplied by, fp32 ``[M, B]``; None: nothing.
    """

    offsets: np.ndarray
    sources: np.ndarray | None = None
    row_weights: np.ndarray | None = None

    def marks(self, *, pin_memory: bool) -> list[dict[str, torch.Tensor]]:
        """The fields of each micro-batch that are numbers of its rows, ``[B]`` each."""
        found: list[dict[str, torch.Tensor]] = [{} for _ in self.offsets]
        for name, values in (("sources", self.sources), ("row_weights", self.row_weights)):
            for fields, own in zip(found, () if values is None else torch.from_numpy(values), strict=False):
                fields[name] = own.pin_memory() if pin_memory else own
        return found


def read_updates(
    dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows], *, pin_memory: bool
) -> Iterator[list[Batch]]:
    """The batches of ``updates``; ``shape`` is that of the largest."""
    if dataset.labelled:
        return _labelled(dataset, shape, updates, pin_memory=pin_memory)
    return (_pinned if pin_memory else _views)(dataset, shape, updates)


def _views(dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows]) -> Iterator[list[Batch]]:
    """Views of buffers int64 ``[M, B, T + 1]`` that are used in turn; inputs and labels differ by one token."""
    size = (shape.grad_accum, shape.local_batch_size, dataset.seq_len + 1)
    ring = [np.empty(size, dtype=np.int64) for _ in range(_RING)]
    views = [[(rows[:, :-1], rows[:, 1:]) for rows in torch.from_numpy(tokens)] for tokens in ring]
    for update, (tokens, pairs) in zip(updates, itertools.cycle(zip(ring, views, strict=True)), strict=False):
        for where, rows in zip(update.offsets, tokens, strict=False):
            dataset.read_windows(where, rows)
        marks = update.marks(pin_memory=False)
        yield [Batch(*pair, **own) for pair, own in zip(pairs, marks, strict=False)]


def _pinned(dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows]) -> Iterator[list[Batch]]:
    """Page-locked inputs and labels ``[M, 2, B, T]``, contiguous: one asynchronous copy takes each.

    They are as narrow as the files (uint16, else int32) and are widened on the device (``prefetch``). They are new for
    each update: torch's host allocator keeps a block until the copies from it are done, which a buffer of ours would
    have to wait for.
    """
    dtype = torch.uint16 if dataset.token_dtype == np.dtype("uint16") else torch.int32
    size = (2, shape.local_batch_size, dataset.seq_len)
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    cuda = torch.cuda.is_available()
    for update in updates:
        tokens = torch.empty((len(update.offsets), *size), dtype=dtype, pin_memory=cuda)
        for where, pair in zip(update.offsets, tokens.numpy(), strict=True):
            dataset.read_windows(where, rows)
            pair[0], pair[1] = rows[:, :-1], rows[:, 1:]
        marks = update.marks(pin_memory=cuda)
        yield [Batch(pair[0], pair[1], **own) for pair, own in zip(tokens, marks, strict=True)]


def _labelled(
    dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows], *, pin_memory: bool
) -> Iterator[list[Batch]]:
    """New batches that the data set makes of one micro-batch's tokens, int64 ``[B, T + 1]``."""
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    for update in updates:
        batches = []
        for where, marks in zip(update.offsets, update.marks(pin_memory=False), strict=True):
            dataset.read_windows(where, rows)
            batch = replace(dataset.make_batch(rows), **marks)
            batches.append(pinned(batch) if pin_memory else batch)
        yield batches


def pinned(batch: Batch) -> Batch:
    """A copy in page-locked memory."""
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return Batch(**{name: tensor.pin_memory() for name, tensor in fields.items()})
