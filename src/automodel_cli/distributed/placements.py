"""Which chunk of a tensor a rank of a mesh holds, from the placements of a ``DTensor``.

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

from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from automodel_cli.distributed.chunks import Chunk
from automodel_cli.errors import AutomodelError


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
    strided = [axis for axis, place in enumerate(placements) if isinstance(place, _StridedShard)]
    plain = [axis for axis, place in enumerate(placements) if isinstance(place, Shard) and axis not in strided]
    is_known = all(isinstance(place, Shard | _StridedShard | Replicate) for place in placements)
    for axis in strided:
        dim, to_the_right = placements[axis].dim, range(axis + 1, len(placements))
        cut_before = math.prod(mesh_shape[right] for right in to_the_right if _dim(placements[right]) == dim)
        is_known = is_known and placements[axis].split_factor == cut_before
    if not is_known:
        raise AutomodelError(
            f"a tensor is sharded as {tuple(placements)}, which is not known here",
            "it was not sharded by this program: shard it with fully_shard and parallelize_module",
        )
    return plain + strided[::-1]


def _dim(placement: Any) -> int | None:
    return placement.dim if isinstance(placement, Shard | _StridedShard) else None
