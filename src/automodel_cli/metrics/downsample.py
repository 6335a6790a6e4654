"""A curve of a million points for a screen of a thousand: the lowest and the highest point of each pixel.

A line through these looks as one through all of them does; no spike is lost, and every point is one that was
measured. Beside them the mean of each pixel, from which a smooth curve is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """What is drawn of a column.

    Attributes:
        x, y: points, x ascending.
        mean_x, mean_y: the mean of each bucket; None: the points are all there are, nothing was left out.
    """

    x: np.ndarray
    y: np.ndarray
    mean_x: np.ndarray | None = None
    mean_y: np.ndarray | None = None


def thin(x: np.ndarray, y: np.ndarray, buckets: int, *, log_x: bool = False) -> Curve:
    """At most two points of each of ``buckets`` equal parts of the x axis (of its logarithm with ``log_x``).

    Args:
        x: ascending, finite, of any length; with ``log_x`` only what is above 0 is drawn.
        y: what is not finite is left out.
    """
    keep = np.isfinite(y) if not log_x else np.isfinite(y) & (x > 0)
    if not keep.all():
        x, y = x[keep], y[keep]
    if len(x) <= 2 * buckets:
        return Curve(x, y)
    spaced = np.geomspace if log_x else np.linspace
    edges = spaced(x[0], x[-1], buckets + 1)[1:-1]
    starts = np.unique(np.concatenate([[0], np.searchsorted(x, edges)]))
    starts = starts[starts < len(x)]
    ends = np.append(starts[1:], len(x))
    lowest = [first + int(y[first:end].argmin()) for first, end in zip(starts, ends, strict=True)]
    highest = [first + int(y[first:end].argmax()) for first, end in zip(starts, ends, strict=True)]
    picked = np.unique(np.concatenate([[0], lowest, highest, [len(x) - 1]]))
    counts = ends - starts
    return Curve(x[picked], y[picked], np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts)


def shown_rows(x: np.ndarray, low: float | None, high: float | None) -> slice:
    """The rows of ``x`` (ascending) from ``low`` to ``high``, and the next one on each side: a line leads there."""
    first = 0 if low is None else max(int(np.searchsorted(x, low, side="left")) - 1, 0)
    end = len(x) if high is None else min(int(np.searchsorted(x, high, side="right")) + 1, len(x))
    return slice(first, max(first, end))
