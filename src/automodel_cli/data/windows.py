"""Token windows into batches.

Shapes: M micro-batches, B rows, T tokens; K numbers say where a row lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.sampler import BatchShape

_RING = 3  # buffers: the update in use, the one before it, the one being read


def read_updates(
    dataset: WindowDataset, shape: BatchShape, offsets: Iterable[np.ndarray], *, pin_memory: bool
) -> Iterator[list[Batch]]:
    """The updates whose rows lie at ``offsets``, each int64 ``[M, B, K]``; ``shape`` is that of the largest."""
    if dataset.labelled:
        return _labelled(dataset, shape, offsets, pin_memory=pin_memory)
    return (_pinned if pin_memory else _views)(dataset, shape, offsets)


def _views(dataset: WindowDataset, shape: BatchShape, offsets: Iterable[np.ndarray]) -> Iterator[list[Batch]]:
    """Views of buffers int64 ``[M, B, T + 1]`` that are used in turn; inputs and labels differ by one token."""
    size = (shape.grad_accum, shape.local_batch_size, dataset.seq_len + 1)
    ring = [np.empty(size, dtype=np.int64) for _ in range(_RING)]
    views = [[(rows[:, :-1], rows[:, 1:]) for rows in torch.from_numpy(tokens)] for tokens in ring]
    for update, (tokens, pairs) in zip(offsets, itertools.cycle(zip(ring, views, strict=True)), strict=False):
        for where, rows in zip(update, tokens, strict=False):
            dataset.read_windows(where, rows)
        yield [Batch(inputs, labels) for inputs, labels in pairs[: len(update)]]


def _pinned(dataset: WindowDataset, shape: BatchShape, offsets: Iterable[np.ndarray]) -> Iterator[list[Batch]]:
    """Page-locked inputs and labels ``[M, 2, B, T]``, contiguous: one asynchronous copy takes each.

    They are as narrow as the files (uint16, else int32) and are widened on the device (``prefetch``). They are new for
    each update: torch's host allocator keeps a block until the copies from it are done, which a buffer of ours would
    have to wait for.
    """
    dtype = torch.uint16 if dataset.token_dtype == np.dtype("uint16") else torch.int32
    size = (2, shape.local_batch_size, dataset.seq_len)
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    for update in offsets:
        tokens = torch.empty((len(update), *size), dtype=dtype, pin_memory=torch.cuda.is_available())
        for where, pair in zip(update, tokens.numpy(), strict=True):
            dataset.read_windows(where, rows)
            pair[0], pair[1] = rows[:, :-1], rows[:, 1:]
        yield [Batch(pair[0], pair[1]) for pair in tokens]


def _labelled(
    dataset: WindowDataset, shape: BatchShape, offsets: Iterable[np.ndarray], *, pin_memory: bool
) -> Iterator[list[Batch]]:
    """New batches that the data set makes of one micro-batch's tokens, int64 ``[B, T + 1]``."""
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    for update in offsets:
        batches = []
        for where in update:
            dataset.read_windows(where, rows)
            batch = dataset.make_batch(rows)
            batches.append(pinned(batch) if pin_memory else batch)
        yield batches


def pinned(batch: Batch) -> Batch:
    """A copy in page-locked memory."""
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return Batch(**{name: tensor.pin_memory() for name, tensor in fields.items()})
