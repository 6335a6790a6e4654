"""The numbers of updates on their way from the device to whoever prints them.

An update's loss, norm and flags are device tensors. Reading one waits until the device has come that far; reading them
in every update would leave a GPU idle while the next update is put together. So each update's numbers are copied in the
background, and read one update later, when they have long arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from automodel_cli.train.step import StepResult

Context = TypeVar("Context")


@dataclass(frozen=True)
class StepNumbers:
    """A ``StepResult`` as Python numbers; ``loss`` is the mean nll per label token, in nats."""

    loss: float
    num_label_tokens: int
    grad_norm: float
    skipped: bool


class Results(Generic[Context]):
    """Updates in order, each with whatever the caller wants to know of it later.

    Args:
        behind: how many updates the reader stays behind; 0 where the device computes in this thread anyway (a CPU).
    """

    def __init__(self, device: torch.device) -> None:
        self.behind = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[Context, _Copy]] = deque()

    def add(self, context: Context, result: StepResult) -> None:
        """Send an update's numbers on their way."""
        self._waiting.append((context, _Copy(result)))

    def arrived(self) -> Iterator[tuple[Context, StepNumbers]]:
        """All but the newest ``behind`` updates; waits for them if need be."""
        return self._first(len(self._waiting) - self.behind)

    def all(self) -> Iterator[tuple[Context, StepNumbers]]:
        """All there are; waits for the device."""
        return self._first(len(self._waiting))

    def _first(self, number: int) -> Iterator[tuple[Context, StepNumbers]]:
        for _ in range(number):
            context, copy = self._waiting.popleft()
            yield context, copy.read()


class _Copy:
    """Four numbers of an update, being copied into page-locked memory where there is a device to copy from."""

    def __init__(self, result: StepResult) -> None:
        # fp64 holds a count of tokens and an fp32 number exactly.
        parts = (result.loss, result.num_label_tokens, result.grad_norm, result.skipped)
        self._numbers = torch.stack([part.detach().double() for part in parts])
        self._event: torch.cuda.Event | None = None
        if self._numbers.device.type == "cuda":
            on_host = torch.empty(len(parts), dtype=torch.float64, pin_memory=True)
            self._numbers = on_host.copy_(self._numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> StepNumbers:
        if self._event is not None:
            self._event.synchronize()
        loss, tokens, norm, skipped = self._numbers.tolist()
        return StepNumbers(loss, int(tokens), norm, bool(skipped))
