"""Metrics of updates on their way from the device to whoever prints them.

An update's loss, norm and flags are device tensors. Reading one waits until the device has come that far; reading them
in every update would leave a GPU idle while the next update is put together. So each update's numbers are copied in the
background, and read one update later, when they have long arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from automodel_cli.train.step import StepMetrics

Context = TypeVar("Context")


class DeferredMetrics(Generic[Context]):
    """Updates in order, each with whatever the caller wants to know of it later.

    Args:
        behind: how many updates the reader stays behind; 0 where the device computes in this thread anyway (a CPU).
    """

    def __init__(self, device: torch.device) -> None:
        self.behind = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[Context, _HostCopy]] = deque()

    def add(self, context: Context, metrics: StepMetrics[Tensor]) -> None:
        """Send an update's numbers on their way."""
        self._waiting.append((context, _HostCopy(metrics)))

    def arrived(self) -> Iterator[tuple[Context, StepMetrics[float]]]:
        """All but the newest ``behind`` updates; waits for them if need be."""
        return self._first(len(self._waiting) - self.behind)

    @property
    def pending(self) -> int:
        """Updates that were added and not read yet."""
        return len(self._waiting)

    def forget(self) -> None:
        """Leave unread what there is: the run has gone back to before it."""
        self._waiting.clear()

    def all(self) -> Iterator[tuple[Context, StepMetrics[float]]]:
        """All there are; waits for the device."""
        return self._first(len(self._waiting))

    def _first(self, number: int) -> Iterator[tuple[Context, StepMetrics[float]]]:
        for _ in range(number):
            context, copy = self._waiting.popleft()
            yield context, copy.read()


def read_now(metrics: StepMetrics[Tensor]) -> StepMetrics[float]:
    """The numbers at once; waits for the device."""
    return _HostCopy(metrics).read()


class _HostCopy:
    """The numbers of an update, being copied into page-locked memory where there is a device to copy from."""

    def __init__(self, metrics: StepMetrics[Tensor]) -> None:
        parts = [getattr(metrics, field.name) for field in fields(metrics) if field.name != "by_source"]
        self._dtypes = [part.dtype for part in parts]
        # fp64 holds a count of tokens and an fp32 number exactly.
        self._numbers = torch.stack([part.detach().double() for part in parts])
        self._told_apart = metrics.by_source is not None
        if self._told_apart:
            self._numbers = torch.cat([self._numbers, metrics.by_source.flatten()])
        self._event: torch.cuda.Event | None = None
        if self._numbers.device.type == "cuda":
            on_host = torch.empty(len(self._numbers), dtype=torch.float64, pin_memory=True)
            self._numbers = on_host.copy_(self._numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> StepMetrics[float]:
        if self._event is not None:
            self._event.synchronize()
        scalars, by_source = self._numbers[: len(self._dtypes)], self._numbers[len(self._dtypes) :]
        numbers = zip(scalars.tolist(), self._dtypes, strict=True)
        told_apart = by_source.view(2, -1).tolist() if self._told_apart else None
        return replace(StepMetrics(*(_as_python(number, dtype) for number, dtype in numbers)), by_source=told_apart)


def _as_python(number: float, dtype: torch.dtype) -> float:
    """The bool, int or float that a scalar of ``dtype`` was."""
    return bool(number) if dtype == torch.bool else number if dtype.is_floating_point else int(number)
