"""Several documents in one row: which of them a token belongs to, and its place in it.

Shapes: B rows, T tokens. ``begins`` is bool ``[B, T]``: whether a document begins at this token. What stands before
the first beginning of a row is the end of an earlier document, and counts as one of its own.
"""

from __future__ import annotations

import numpy as np


def positions(begins: np.ndarray) -> np.ndarray:
    """Positions that count from each beginning (and from the row's), int64 ``[B, T]``."""
    count = np.arange(begins.shape[1], dtype=np.int64)
    return count - np.maximum.accumulate(np.where(begins, count, 0), axis=1)


def segments(begins: np.ndarray) -> np.ndarray:
    """Number of the document within the row, int64 ``[B, T]``."""
    return np.cumsum(begins, axis=1, dtype=np.int64)
