"""Token ids that stay with the worker that made them until they are in a file.

They would pass through two pipes' ends and a file's: copies that take a core's time from the tokenizers. So a chunk
brings ``HeldTokens`` in place of the array. They have its length, dtype and slices; a writer says where in which file
they belong, and the worker puts them there. What was said about a chunk goes to its worker in one message.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from automodel_cli.files import disk_errors_named


@dataclass(frozen=True)
class Placement:
    """Ids ``start`` to ``stop`` of a chunk belong at byte ``at`` of a file that is there."""

    start: int
    stop: int
    path: str
    at: int


@dataclass
class PlaceOrder:
    """What a worker is to do with the ids of the ``number``-th chunk it made; ``last``: then it may forget them."""

    number: int
    placements: list[Placement] = field(default_factory=list)
    last: bool = False


class HeldTokens:
    """Ids ``start`` to ``stop`` of a chunk; ``settle`` waits until all ids are where they belong."""

    __slots__ = ("_order", "_start", "_stop", "dtype", "settle")

    def __init__(self, order: PlaceOrder, start: int, stop: int, dtype: np.dtype, settle: Callable[[], None]) -> None:
        self._order, self._start, self._stop, self.dtype, self.settle = order, start, stop, dtype, settle

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, piece: slice) -> HeldTokens:
        first, stop, step = piece.indices(len(self))
        assert step == 1
        start = self._start + first
        return HeldTokens(self._order, start, max(start, self._start + stop), self.dtype, self.settle)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return len(self) * self.dtype.itemsize

    def put(self, path: Path, at: int) -> None:
        """Have them written at byte ``at`` of ``path``; they are there after ``settle``."""
        if len(self):
            self._order.placements.append(Placement(self._start, self._stop, os.fspath(path), at))


def place(tokens: np.ndarray, placements: list[Placement]) -> None:
    """Write ids where they belong.

    Raises:
        AutomodelError: the disk is full.
    """
    for placement in placements:
        data = tokens[placement.start : placement.stop].view(np.uint8).data
        at = placement.at
        with disk_errors_named(placement.path):
            descriptor = os.open(placement.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                while data:
                    done = os.pwrite(descriptor, data, at)
                    data, at = data[done:], at + done
            finally:
                os.close(descriptor)
