"""Rows of any length in another order: by joining slices, or by Arrow's ``take`` once there have been very many.

Joining costs 0.35 us a row besides its bytes, Arrow 0.05; but Arrow's functions take half a second and 60 MB to load.
So a process loads them after it has joined so many rows that it would have paid for that.
"""

from __future__ import annotations

import numpy as np

_INT32_BYTES = 2**31 - 1  # Arrow's offsets up to here are int32, which are quicker
_JOIN_ROWS = 1_000_000
_joined_rows = 0  # by this process


class Rows:
    """Rows that lie one after another in ``data`` (uint8), each ``lengths`` bytes long."""

    def __init__(self, data: np.ndarray, lengths: np.ndarray) -> None:
        self._data = data
        self._stops = np.cumsum(lengths)
        self._starts = self._stops - lengths
        assert not len(lengths) or self._stops[-1] <= len(data), "the rows are longer than their bytes"
        self._arrow = _ArrowRows(data, self._stops) if _joined_rows > _JOIN_ROWS else None

    def take(self, order: np.ndarray) -> np.ndarray:
        """The bytes (uint8) of the rows numbered in ``order``, one after another; of a single one without a copy."""
        global _joined_rows
        if len(order) == 1:
            return self._data[self._starts[order[0]] : self._stops[order[0]]]
        if self._arrow is not None:
            return self._arrow.take(order)
        _joined_rows += len(order)
        data, starts, stops = self._data.data, self._starts[order].tolist(), self._stops[order].tolist()
        joined = b"".join([data[start:stop] for start, stop in zip(starts, stops, strict=True)])
        return np.frombuffer(joined, dtype=np.uint8)


class _ArrowRows:
    """The rows as an array of Arrow's, without a copy."""

    def __init__(self, data: np.ndarray, stops: np.ndarray) -> None:
        import pyarrow as pa  # see above

        small = len(data) <= _INT32_BYTES
        self._dtype = np.dtype(np.int32 if small else np.int64)
        offsets = np.concatenate(([0], stops)).astype(self._dtype)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        self._array = pa.Array.from_buffers(pa.binary() if small else pa.large_binary(), len(stops), buffers)

    def take(self, order: np.ndarray) -> np.ndarray:
        import pyarrow as pa  # see above
        import pyarrow.compute as pc

        taken = pc.take(self._array, pa.array(order.astype(self._dtype, copy=False)), boundscheck=False)
        _, offsets, data = taken.buffers()
        if data is None:  # no row, or only empty ones
            return np.zeros(0, dtype=np.uint8)
        stop = np.frombuffer(offsets, dtype=self._dtype)[len(order)]
        return np.frombuffer(data, dtype=np.uint8)[:stop]
