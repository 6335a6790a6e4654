"""Rows of any length in another order, without a Python object a row: Arrow's ``take`` over one buffer.

For 200-byte rows that is ten times as fast as slicing and joining bytes, for 3 kB rows three times.
"""

from __future__ import annotations

import numpy as np

_INT32_BYTES = 2**31 - 1  # offsets up to here are int32, which are quicker


class Rows:
    """Rows that lie one after another in ``data`` (uint8), each ``lengths`` bytes long."""

    def __init__(self, data: np.ndarray, lengths: np.ndarray) -> None:
        import pyarrow as pa  # a quarter of a second that runs without a shuffle do not pay

        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        assert offsets[-1] <= len(data), "the rows are longer than their bytes"
        small = len(data) <= _INT32_BYTES
        self._dtype = np.dtype(np.int32 if small else np.int64)
        kind = pa.binary() if small else pa.large_binary()
        buffers = [None, pa.py_buffer(offsets.astype(self._dtype, copy=False)), pa.py_buffer(data)]
        self._array = pa.Array.from_buffers(kind, len(lengths), buffers)

    def take(self, order: np.ndarray) -> np.ndarray:
        """The bytes (uint8) of the rows numbered in ``order``, one after another."""
        import pyarrow as pa  # as above
        import pyarrow.compute as pc

        taken = pc.take(self._array, pa.array(order.astype(self._dtype, copy=False)), boundscheck=False)
        _, offsets, data = taken.buffers()
        if data is None:  # no row, or only empty ones
            return np.zeros(0, dtype=np.uint8)
        stop = np.frombuffer(offsets, dtype=self._dtype)[len(order)]
        return np.frombuffer(data, dtype=np.uint8)[:stop]
