"""Updates made ahead of their use: read on the host in a thread, copied to a CUDA device on a stream of their own.

Tokens leave the host as they are stored (two bytes each where the vocabulary allows) and are widened on the device.
Both are asked for one update ahead, so that neither reading files nor the bus is in the way of an update.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import torch

from automodel_cli.batch import Batch

_Item = TypeVar("_Item")
_SLOW_READ_S = 2e-3  # an update that took longer to read is worth a thread (a hand-over costs about 50 us)


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


def prefetch_to_device(updates: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """``updates`` on ``device``, int64, the next one under way while one is in use; without CUDA as they are."""
    if device.type != "cuda":
        yield from updates
        return
    copies = torch.cuda.Stream(device)
    following = _start(updates, copies, device)
    while following is not None:
        update, arrived = following
        following = _start(updates, copies, device)
        here = torch.cuda.current_stream(device)
        here.wait_event(arrived)
        for tensor in (tensor for batch in update for tensor in vars(batch).values() if tensor is not None):
            tensor.record_stream(here)  # its memory is used again only when that stream is done with it
        yield update


def _start(
    updates: Iterator[list[Batch]], copies: torch.cuda.Stream, device: torch.device
) -> tuple[list[Batch], torch.cuda.Event] | None:
    """The next update on its way, and the event of its arrival; None at the end."""
    update = next(updates, None)
    if update is None:
        return None
    with torch.cuda.stream(copies):
        moved = [_widened(batch.to(device, non_blocking=True)) for batch in update]
        arrived = torch.cuda.Event()
        arrived.record(copies)
    return moved, arrived


def _widened(batch: Batch) -> Batch:
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    return Batch(**{name: one if one.is_floating_point() else one.long() for name, one in fields.items()})
