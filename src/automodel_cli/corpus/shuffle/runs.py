"""Records, and the rows they may have, grouped by number: what a task leaves for those that each read one number.

Every call of ``add`` writes a *run*: what it was given, in the order of the numbers. Files of a store ``NAME``:

| file       | content                                                                                         |
|------------|-------------------------------------------------------------------------------------------------|
| NAME.docs  | the records of all runs                                                                         |
| NAME.rows  | their rows                                                                                      |
| NAME.index | for each run ``count + 1`` pairs u64: where each number begins in .docs and in .rows, in bytes  |

So a store is three files, however many numbers there are, and what it has of one number is a slice of each run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from automodel_cli.corpus.shuffle.bucket_reader import Segment, Slice
from automodel_cli.corpus.shuffle.buckets import write_all
from automodel_cli.corpus.shuffle.packed_rows import Rows
from automodel_cli.errors import DataError

_BOUND = np.dtype("<u8")


class RunWriter:
    """Writes one store of ``count`` numbers."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._count = count
        paths = [folder / f"{name}.{suffix}" for suffix in ("docs", "rows", "index")]
        self._docs, self._rows, self._index = (path.open("wb", buffering=0) for path in paths)

    def add(self, numbers: np.ndarray, records: np.ndarray, data: np.ndarray | None = None) -> None:
        """Add records with their numbers (uint16); ``data`` (uint8) holds their rows, as long as their "length"."""
        order = np.argsort(numbers, kind="stable")  # a radix sort
        ends = np.cumsum(np.bincount(numbers, minlength=self._count))
        bounds = np.zeros((self._count + 1, 2), dtype=_BOUND)
        bounds[1:, 0] = ends * records.dtype.itemsize
        bounds += np.array([self._docs.tell(), self._rows.tell()], dtype=_BOUND)
        if data is not None:
            lengths = records["length"].astype(np.int64)
            before = np.concatenate(([0], np.cumsum(lengths[order])))
            bounds[1:, 1] += before[ends].astype(_BOUND)
            write_all(self._rows.fileno(), Rows(data, lengths).take(order))
        write_all(self._docs.fileno(), records[order])
        write_all(self._index.fileno(), bounds)

    def close(self) -> None:
        """No more."""
        for handle in (self._docs, self._rows, self._index):
            handle.close()


def segments(folder: Path, name: str, count: int, number: int) -> list[Segment]:
    """What a store of ``count`` numbers has of one number: a segment for each run, in their order.

    Raises:
        DataError: the store is gone or not whole.
    """
    docs, rows, index = (folder / f"{name}.{suffix}" for suffix in ("docs", "rows", "index"))
    try:
        if not index.stat().st_size:
            return []
        bounds = np.memmap(index, dtype=_BOUND, mode="r").reshape(-1, count + 1, 2)[:, number : number + 2].tolist()
        sizes = docs.stat().st_size, rows.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"{index} is not whole: {error}", "start over with --overwrite") from error
    found = [Segment(Slice(docs, a, b), Slice(rows, c, d)) for (a, c), (b, d) in bounds if a < b]
    if any(s.docs.stop > sizes[0] or s.rows.stop > sizes[1] or s.rows.size < 0 for s in found):
        raise DataError(f"{docs} is not whole", "start over with --overwrite")
    return found


def arrays(found: list[Segment], dtype: np.dtype) -> np.ndarray:
    """The records of segments, all in memory."""
    pieces = [array for segment in found for array in segment.docs.arrays(dtype, 1 << 20)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=dtype)
