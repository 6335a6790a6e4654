"""Iterable data sets of a user's own over numbered rows: one that says where it is, one that hands out shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset


class Stateful(IterableDataset[Any]):
    """Says where it is; at its end it begins anew. Knows nothing of ranks."""

    def __init__(self, row: Callable[[int], Any], rows: int) -> None:
        self.row, self.rows, self.position, self.served = row, rows, 0, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.rows:
            self.position += 1
            self.served += 1
            yield self.row(self.position - 1)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Sharded(IterableDataset[Any]):
    """Hands out a shard to each rank."""

    def __init__(self, row: Callable[[int], Any], rows: int, first: int = 0, step: int = 1) -> None:
        self.row, self.numbers = row, range(first, rows, step)

    def shard(self, num_shards: int, index: int) -> Sharded:
        return Sharded(self.row, self.numbers.stop, index, num_shards)

    def __iter__(self) -> Iterator[Any]:
        return map(self.row, self.numbers)
