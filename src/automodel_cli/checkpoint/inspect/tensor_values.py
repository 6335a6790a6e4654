"""What stored tensors hold, without torch: not-a-number and infinity, and how far two of them are apart.

Everything goes through pieces of a few million elements of a memory-mapped file, so memory stays flat
whatever the size of the model. bfloat16 and float8 have no numpy type: they are read as bit patterns and
widened by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, raw_array

_PIECE = 1 << 22  # elements: 4 Mi x 8 bytes of float64 = 32 MiB


@dataclass(frozen=True)
class Difference:
    """How far two tensors of one shape are apart: ``max_abs`` |a - b|, ``relative`` ||a - b|| / ||a||.

    Where one of a pair is no finite number, and the other is not the same, both are infinite.
    """

    max_abs: float
    relative: float


def nonfinite(tensor: StoredTensor) -> tuple[int, int]:
    """How many elements are NaN, and how many infinite."""
    nan = infinite = 0
    for path, info in tensor.shards:
        for piece in _pieces(raw_array(path, info)):
            found = _nonfinite(piece, info.dtype)
            nan, infinite = nan + found[0], infinite + found[1]
    return nan, infinite


def _nonfinite(piece: np.ndarray, dtype: str) -> tuple[int, int]:
    if dtype == "BF16":
        special = (piece & 0x7F80) == 0x7F80  # all bits of the exponent
        infinite = special & ((piece & 0x007F) == 0)
    elif dtype == "F8_E5M2":
        special = (piece & 0x7C) == 0x7C
        infinite = special & ((piece & 0x03) == 0)
    elif dtype == "F8_E4M3":  # the "fn" kind: no infinity
        special, infinite = (piece & 0x7F) == 0x7F, np.zeros(1, dtype=bool)
    elif dtype in ("F16", "F32", "F64", "C64"):
        special, infinite = ~np.isfinite(piece), np.isinf(piece)
    else:
        return 0, 0
    number = int(infinite.sum())
    return int(special.sum()) - number, number


def difference(a: StoredTensor, b: StoredTensor) -> Difference:
    """Compare two tensors of one shape; types may differ."""
    assert a.shape == b.shape, (a, b)
    largest = squares = norm = 0.0
    for left, right in zip(_pieces(a.raw()), _pieces(b.raw()), strict=True):
        if a.dtype == b.dtype and np.array_equal(left, right):
            values = widen(left, a.dtype)
            norm += float(np.square(np.abs(values)).sum())
            continue
        x, y = widen(left, a.dtype), widen(right, b.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(x - y)
        apart[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
        apart[np.isnan(apart)] = np.inf
        largest = max(largest, float(apart.max(initial=0)))
        squares += float(np.square(apart).sum())
        norm += float(np.square(np.abs(x)).sum())
    if largest == 0:
        return Difference(0.0, 0.0)
    return Difference(largest, math.sqrt(squares) / math.sqrt(norm) if norm > 0 else math.inf)


def widen(piece: np.ndarray, dtype: str) -> np.ndarray:
    """Stored elements as float64 (complex128 for complex ones)."""
    if dtype == "BF16":
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return (piece.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in _FLOAT8:
        return _FLOAT8[dtype][piece]
    return piece.astype(np.complex128 if dtype == "C64" else np.float64)


def _float8_table(exponent_bits: int, mantissa_bits: int, *, infinity: bool) -> np.ndarray:
    """The value of each of the 256 patterns."""
    bits = np.arange(256)
    exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (bits & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    top = exponent == (1 << exponent_bits) - 1
    if infinity:
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    else:
        values[top & (mantissa == 1 - 1 / (1 << mantissa_bits))] = np.nan
    return np.where(bits & 0x80, -values, values)


_FLOAT8 = {
    "F8_E5M2": _float8_table(5, 2, infinity=True),
    "F8_E4M3": _float8_table(4, 3, infinity=False),
}


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    for begin in range(0, len(flat), _PIECE):
        yield np.asarray(flat[begin : begin + _PIECE])
