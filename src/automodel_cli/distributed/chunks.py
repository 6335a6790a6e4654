"""Chunks: boxes of tensors, as offsets and sizes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Chunk = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets, sizes."""


def intersection(a: Chunk, b: Chunk) -> Chunk | None:
    """Where two chunks overlap; None where they do not."""
    begins = tuple(map(max, a[0], b[0]))
    ends = [min(a_begin + a_size, b_begin + b_size) for a_begin, a_size, b_begin, b_size in zip(*a, *b, strict=True)]
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return None if any(size <= 0 for size in sizes) else (begins, sizes)


def narrowed(tensor: Any, offsets: Sequence[int], chunk: Chunk) -> Any:
    """The view of ``chunk`` in a ``tensor`` that itself begins at ``offsets``."""
    for dim, (begin, size) in enumerate(zip(*chunk, strict=True)):
        tensor = tensor.narrow(dim, begin - offsets[dim], size)
    return tensor
