"""Rows of any length in another order: by joining slices, or by Arrow's ``take`` where they are many and short.

Joining costs half a microsecond a row besides its bytes, Arrow a tenth; of rows of a kilobyte or more neither is seen
beside the copying. Arrow's functions take half a second and 60 MB to load.
"""

from __future__ import annotations

import numpy as np

_INT32_BYTES = 2**31 - 1  # Arrow's offsets up to here are int32, which are quicker
_MANY_ROWS, _SHORT_BYTES = 1 << 17, 1000


class Rows:
    """Rows that lie one after another in ``data`` (uint8), each ``lengths`` bytes long."""

    def __init__(self, data: np.ndarray, lengths: np.ndarray) -> None:
        self._data = data
        self._stops = np.cumsum(lengths)
        self._starts = self._stops - lengths
        assert not len(lengths) or self._stops[-1] <= len(data), "the rows are longer than their bytes"
        many = len(lengths) >= _MANY_ROWS and len(data) < _SHORT_BYTES * len(lengths)
        self._arrow = _ArrowRows(data, self._stops) if many else None

    def take(self, order: np.ndarray) -> np.ndarray:
        """The bytes (uint8) of the rows numbered in ``order``, one after another; of a single one without a copy."""
        if len(order) == 1:
            return self._data[self._starts[order[0]] : self._stops[order[0]]]
        if self._arrow is not None:
            return self._arrow.take(order)
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
