"""Token windows into batches: the buffers that tokens are copied into, and reading ahead.

Shapes: M micro-batches, B rows, T tokens.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.sampler import BatchShape

_Item = TypeVar("_Item")
_SLOW_READ_S = 2e-3  # an update that took longer to read is worth a thread (a hand-over costs about 50 us)


def buffers(
    dataset: WindowDataset, shape: BatchShape, *, count: int, pin_memory: bool
) -> list[Buffer | PinnedBuffer | LabelledBuffer]:
    """Buffers of the kind that ``dataset`` and the device need."""
    if dataset.labelled:
        return [LabelledBuffer(shape, dataset.seq_len, pin_memory=pin_memory) for _ in range(count)]
    if pin_memory:
        return [PinnedBuffer(shape, dataset.seq_len, narrow_dtype(dataset)) for _ in range(count)]
    return [Buffer(shape, dataset.seq_len) for _ in range(count)]


def narrow_dtype(dataset: WindowDataset) -> torch.dtype:
    """The smallest type that holds the ids of ``dataset``: uint16 where its files are, else int32."""
    return torch.uint16 if dataset.token_dtype == np.dtype("uint16") else torch.int32


class Buffer:
    """One update's tokens, int64 ``[M, B, T + 1]``; inputs and labels are views that differ by one token."""

    def __init__(self, shape: BatchShape, seq_len: int) -> None:
        self._tokens = np.empty((shape.grad_accum, shape.local_batch_size, seq_len + 1), dtype=np.int64)
        tensor = torch.from_numpy(self._tokens)
        self._views = [(rows[:, :-1], rows[:, 1:]) for rows in tensor]

    def fill(self, dataset: WindowDataset, offsets: np.ndarray) -> list[Batch]:
        for rows, where in zip(self._tokens, offsets, strict=True):
            dataset.read_windows(where, rows)
        return [Batch(inputs, labels) for inputs, labels in self._views]


class PinnedBuffer:
    """Page-locked inputs and labels ``[M, 2, B, T]`` in a narrow type, contiguous: one asynchronous copy takes each.

    They are widened on the device (``ahead``). They are new for each update: torch's host allocator keeps a block
    until the copies from it are done, which a buffer reused by us would have to wait for.
    """

    def __init__(self, shape: BatchShape, seq_len: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._size = (shape.grad_accum, 2, shape.local_batch_size, seq_len)
        self._rows = np.empty((shape.local_batch_size, seq_len + 1), dtype=np.int64)

    def fill(self, dataset: WindowDataset, offsets: np.ndarray) -> list[Batch]:
        tokens = torch.empty(self._size, dtype=self._dtype, pin_memory=torch.cuda.is_available())
        for pair, where in zip(tokens.numpy(), offsets, strict=True):
            dataset.read_windows(where, self._rows)
            pair[0], pair[1] = self._rows[:, :-1], self._rows[:, 1:]
        return [Batch(pair[0], pair[1]) for pair in tokens]


class LabelledBuffer:
    """One micro-batch's tokens, int64 ``[B, T + 1]``, of which the data set makes new batches."""

    def __init__(self, shape: BatchShape, seq_len: int, *, pin_memory: bool) -> None:
        self._rows = np.empty((shape.local_batch_size, seq_len + 1), dtype=np.int64)
        self._pin_memory = pin_memory

    def fill(self, dataset: WindowDataset, offsets: np.ndarray) -> list[Batch]:
        batches = []
        for where in offsets:
            dataset.read_windows(where, self._rows)
            batch = dataset.make_batch(self._rows)
            batches.append(pinned(batch) if self._pin_memory else batch)
        return batches


def pinned(batch: Batch) -> Batch:
    """A copy in page-locked memory."""
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return Batch(**{name: tensor.pin_memory() for name, tensor in fields.items()})


def prefetch_on_host(items: Iterator[_Item], when: bool | Literal["auto"]) -> Iterator[_Item]:
    """``items``, the next one being made in a thread while one is in use.

    "auto" makes them in the calling thread until one keeps it waiting for the disk (see ``_stalled_next``).
    """
    item, stalled = _stalled_next(items)
    while item is not None and (when is False or (when == "auto" and not stalled)):
        yield item
        item, stalled = _stalled_next(items)
    if item is None:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        while item is not None:
            following = thread.submit(next, items, None)
            yield item
            item = following.result()


def _stalled_next(items: Iterator[_Item]) -> tuple[_Item | None, bool]:
    """The next item, and whether it kept this thread waiting: long, and off the processor by its own will.

    A page or a read that comes from the disk is a voluntary context switch; being pushed aside by other
    processes is not, and a second thread would not help against it.
    """
    started, waits = time.perf_counter(), _voluntary_waits()
    item = next(items, None)
    return item, time.perf_counter() - started > _SLOW_READ_S and _voluntary_waits() > waits


def _voluntary_waits() -> float:
    """Voluntary context switches of this thread so far; NaN where the system does not count them by thread."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    return float("nan") if who is None else resource.getrusage(who).ru_nvcsw
