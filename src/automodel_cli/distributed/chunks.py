"""Which chunk of a tensor a rank of a mesh holds: offsets and sizes, from the placements of a ``DTensor``.

Along each dimension it is the interval that the placements leave to the rank's place in the mesh (``torch.chunk``
sizes: the last places may get less, or nothing).

    Shard(d)           the interval of dimension d is cut again, mesh axes from left to right
    _StridedShard(d)   the same, but after the axes to its right: FSDP cuts what tensor parallelism left
    Replicate          nothing is cut: several ranks hold the same chunk
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from automodel_cli.errors import AutomodelError

Chunk = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets, sizes."""


def chunk_of(
    shape: tuple[int, ...], mesh_shape: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> Chunk:
    """Offsets and sizes of the chunk at ``coordinate`` of a mesh.

    Raises:
        AutomodelError: a placement is unknown, or interleaves in another way than FSDP over tensor parallelism.
    """
    begins, sizes = [0] * len(shape), list(shape)
    for axis in _cutting_order(mesh_shape, placements):
        dim = placements[axis].dim
        chunk = -(-sizes[dim] // mesh_shape[axis])
        skipped = min(coordinate[axis] * chunk, sizes[dim])
        begins[dim] += skipped
        sizes[dim] = min(chunk, sizes[dim] - skipped)
    return tuple(begins), tuple(sizes)


def _cutting_order(mesh_shape: Sequence[int], placements: Sequence[Any]) -> list[int]:
    """Mesh axes that cut, in the order in which they do: plain ones from the left, then strided from the right."""
    plain, strided = [], []
    for axis, placement in enumerate(placements):
        if isinstance(placement, _StridedShard):
            cut_before = [
                mesh_shape[right]
                for right in range(axis + 1, len(placements))
                if isinstance(placements[right], Shard | _StridedShard)
                and placements[right].dim == placement.dim
            ]
            if placement.split_factor != math.prod(cut_before):
                raise AutomodelError(
                    f"a tensor is sharded as {tuple(placements)}, which is not known here", _REPORT
                )
            strided.append(axis)
        elif isinstance(placement, Shard):
            plain.append(axis)
        elif not isinstance(placement, Replicate):
            raise AutomodelError(
                f"a tensor is placed as {tuple(placements)}, which is not known here", _REPORT
            )
    return plain + strided[::-1]


_REPORT = "it was not sharded by this program: shard it with fully_shard and parallelize_module"


def intersection(a: Chunk, b: Chunk) -> Chunk | None:
    """Where two chunks overlap; None where they do not."""
    begins = tuple(map(max, a[0], b[0]))
    ends = tuple(
        min(a_begin + a_size, b_begin + b_size)
        for a_begin, a_size, b_begin, b_size in zip(a[0], a[1], b[0], b[1], strict=True)
    )
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return None if any(size <= 0 for size in sizes) else (begins, sizes)


def narrowed(tensor: torch.Tensor, offsets: Sequence[int], chunk: Chunk) -> torch.Tensor:
    """The view of ``chunk`` in a ``tensor`` that itself begins at ``offsets``."""
    for dim, (begin, size) in enumerate(zip(*chunk, strict=True)):
        tensor = tensor.narrow(dim, begin - offsets[dim], size)
    return tensor
