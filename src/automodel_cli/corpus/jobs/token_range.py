"""A stand-in for an array of token ids that says where they are: in which part's file, from where to where.

It has the length, the dtype and the slices of the array, so that what divides tokens into files does the same with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np

RANGE = np.dtype([("part", "<u8"), ("start", "<u8"), ("stop", "<u8")])
"""A range as it stands in a file."""


class TokenRange:
    """Ids ``start`` to ``stop`` of those of a part."""

    __slots__ = ("dtype", "part", "start", "stop")

    def __init__(self, part: int, start: int, stop: int, dtype: np.dtype) -> None:
        self.part, self.start, self.stop, self.dtype = part, start, stop, dtype

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, piece: slice) -> TokenRange:
        first, stop, step = piece.indices(len(self))
        assert step == 1
        return TokenRange(self.part, self.start + first, self.start + max(first, stop), self.dtype)


class RangeLog:
    """Writes ranges one after another; those that adjoin become one."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._open: list[int] | None = None

    def add(self, tokens: Any) -> None:
        """Append a TokenRange."""
        if len(tokens) == 0:
            return
        if self._open is not None and self._open[0] == tokens.part and self._open[2] == tokens.start:
            self._open[2] = tokens.stop
            return
        self.flush()
        self._open = [tokens.part, tokens.start, tokens.stop]

    def flush(self) -> None:
        """Write the last range, which may have grown until now."""
        if self._open is not None:
            self._handle.write(np.array(self._open, dtype="<u8").tobytes())
            self._open = None


def read_ranges(path: Path) -> np.ndarray:
    """All ranges of a file, as records of ``RANGE``; mapped, so that memory does not grow with their number."""
    if path.stat().st_size == 0:
        return np.empty(0, RANGE)
    return np.memmap(path, dtype=RANGE, mode="r")
