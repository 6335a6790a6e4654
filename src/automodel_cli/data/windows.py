"""Token windows into batches.

Shapes: M micro-batches, B rows, T tokens; K numbers say where a row lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.sampler import BatchShape

_RING = 3  # buffers: the update in use, the one before it, the one being read


class UpdateRows(NamedTuple):
    """The rows of one update: where they lie, int64 ``[M, B, K]``, and further fields of each micro-batch, if any."""

    offsets: np.ndarray
    fields: Sequence[Mapping[str, torch.Tensor]] = ()


def with_fields(offsets: np.ndarray, *, pin_memory: bool, **values: np.ndarray) -> Iterator[UpdateRows]:
    """Updates of ``offsets`` ``[U, M, B, K]`` with ``values`` ``[U, M, B]`` as fields, made for all of them at once."""
    updates, micro_batches = offsets.shape[:2]
    tensors = (torch.from_numpy(found).flatten(0, 1) for found in values.values())
    rows = [(one.pin_memory() if pin_memory else one).unbind() for one in tensors]  # a tensor a micro-batch
    fields = [dict(zip(values, own, strict=True)) for own in zip(*rows, strict=True)]
    of_updates = (fields[at * micro_batches : (at + 1) * micro_batches] for at in range(updates))
    return map(UpdateRows, offsets, of_updates)


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
        yield _batches(pairs[: len(update.offsets)], update.fields)


def _pinned(dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows]) -> Iterator[list[Batch]]:
    """Page-locked inputs and labels ``[M, 2, B, T]``, contiguous: one asynchronous copy takes each.

    They are as narrow as the files (uint16, else int32) and are widened on the device (``prefetch``). They are new for
    each update: torch's host allocator keeps a block until the copies from it are done, which a buffer of ours would
    have to wait for.
    """
    dtype = torch.uint16 if dataset.token_dtype == np.dtype("uint16") else torch.int32
    size = (2, shape.local_batch_size, dataset.seq_len)
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    for update in updates:
        size_of = (len(update.offsets), *size)
        tokens = torch.empty(size_of, dtype=dtype, pin_memory=torch.cuda.is_available())
        for where, pair in zip(update.offsets, tokens.numpy(), strict=True):
            dataset.read_windows(where, rows)
            pair[0], pair[1] = rows[:, :-1], rows[:, 1:]
        yield _batches(tokens, update.fields)


def _labelled(
    dataset: WindowDataset, shape: BatchShape, updates: Iterable[UpdateRows], *, pin_memory: bool
) -> Iterator[list[Batch]]:
    """New batches that the data set makes of one micro-batch's tokens, int64 ``[B, T + 1]``."""
    rows = np.empty((shape.local_batch_size, dataset.seq_len + 1), dtype=np.int64)
    for update in updates:
        batches = []
        for where, fields in zip(update.offsets, update.fields or itertools.repeat({}), strict=False):
            dataset.read_windows(where, rows)
            batch = replace(dataset.make_batch(rows), **fields) if fields else dataset.make_batch(rows)
            batches.append(pinned(batch) if pin_memory else batch)
        yield batches


def _batches(pairs: Iterable[Any], fields: Sequence[Mapping[str, torch.Tensor]]) -> list[Batch]:
    """Of each pair of inputs and labels a batch, with its fields where there are such."""
    if not fields:
        return [Batch(inputs, labels) for inputs, labels in pairs]
    return [Batch(inputs, labels, **own) for (inputs, labels), own in zip(pairs, fields, strict=True)]


def pinned(batch: Batch) -> Batch:
    """A copy in page-locked memory."""
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return Batch(**{name: tensor.pin_memory() for name, tensor in fields.items()})
