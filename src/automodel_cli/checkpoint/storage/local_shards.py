"""Which chunk of a tensor this rank holds, and which ranks write what: every element once.

A plain tensor is held whole, of a ``DTensor`` the chunk that ``distributed.chunks`` says.

Ranks outside a tensor's mesh may hold the same chunk too (a norm under tensor parallelism, say). So who writes is
not read off the placements: the ranks tell each other their chunks, and the lowest rank that has one writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Partial

from automodel_cli.checkpoint.all_ranks import all_ranks
from automodel_cli.distributed.chunks import Chunk
from automodel_cli.distributed.placements import chunk_of
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class LocalShard:
    """A chunk of a tensor: where it begins, the shape of the whole, and its values (shared with the tensor)."""

    offsets: tuple[int, ...]
    whole: tuple[int, ...]
    values: torch.Tensor

    @property
    def chunk(self) -> Chunk:
        return self.offsets, tuple(self.values.shape)


def local_shard(name: str, tensor: torch.Tensor) -> LocalShard:
    """What this rank holds of ``tensor``.

    Raises:
        CheckpointError: the tensor is laid out in a way that is not known here.
    """
    if not isinstance(tensor, DTensor):
        return LocalShard((0,) * tensor.dim(), tuple(tensor.shape), tensor.detach())
    local = tensor.to_local().detach()
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    if coordinate is None:  # this rank is not in the tensor's mesh
        return LocalShard((0,) * tensor.dim(), tuple(tensor.shape), local.new_empty((0,) * tensor.dim()))
    offsets, sizes = chunk_of(tuple(tensor.shape), tuple(mesh.shape), coordinate, tensor.placements)
    if sizes != tuple(local.shape):
        raise CheckpointError(
            f"{name!r} is sharded as {tensor.placements}: this rank holds {list(local.shape)} of "
            f"{list(tensor.shape)}, expected {list(sizes)}",
            "choose mesh sizes that divide the model's widths",
        )
    return LocalShard(offsets, tuple(tensor.shape), local)


def reduce_partial(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors whose sum over ranks is still to be taken (Adafactor keeps such) are summed; all ranks call this."""
    whole = dict(tensors)
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and any(isinstance(place, Partial) for place in tensor.placements):
            kept = [Replicate() if isinstance(place, Partial) else place for place in tensor.placements]
            whole[name] = tensor.redistribute(placements=kept).detach()
    return whole


def shards_to_write(
    tensors: Mapping[str, torch.Tensor], world: World, *, what: str = "saving"
) -> dict[str, LocalShard]:
    """The shards that this rank writes; over all ranks, every element of every tensor once. All ranks call this.

    Raises:
        CheckpointError: the ranks' chunks of a tensor leave a gap, or overlap without being the same.
    """
    shards: dict[str, LocalShard] = {}

    def describe() -> dict[str, Any]:
        shards.update({name: local_shard(name, tensor) for name, tensor in tensors.items()})
        return {} if world.size == 1 else {name: [*shard.chunk, shard.whole] for name, shard in shards.items()}

    chunks = all_ranks(world, describe, what=what)
    if world.size == 1:
        return shards
    owners = plan_writes(chunks)
    return {name: shard for name, shard in shards.items() if owners.get((name, shard.chunk)) == world.rank}


def plan_writes(chunks: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Chunk], int]:
    """Which rank writes which chunk, from what each rank holds: ``{name: [offsets, sizes, whole shape]}``.

    Raises:
        CheckpointError: they do not add up to the whole.
    """
    owners: dict[tuple[str, Chunk], int] = {}
    written: dict[str, int] = {}
    wholes: dict[str, list[int]] = {}
    for rank, held in enumerate(chunks):
        for name, (offsets, sizes, whole) in held.items():
            if wholes.setdefault(name, whole) != whole:
                raise CheckpointError(
                    f"{name!r} is {whole} on rank {rank}, {wholes[name]} on others",
                    "this is a bug: report it",
                )
            if math.prod(sizes) == 0 and math.prod(whole) != 0:
                continue
            key = (name, (tuple(offsets), tuple(sizes)))
            if key not in owners:
                owners[key] = rank
                written[name] = written.get(name, 0) + math.prod(sizes)
    for name, whole in wholes.items():
        if written.get(name) != math.prod(whole):
            raise CheckpointError(
                f"the ranks hold {written.get(name, 0):,} elements of {name!r}, which has {math.prod(whole):,}",
                "it is sharded in a way that is not known here",
            )
    return owners


def empty_like_parameter(parameter: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor without values that lies as ``parameter`` does: sharded like it where the shape is the same."""
    if not isinstance(parameter, DTensor):
        return torch.empty(shape, dtype=dtype, device="cpu" if parameter is None else parameter.device)
    if shape == tuple(parameter.shape):
        return torch.empty_like(parameter.detach(), dtype=dtype)
    mesh = parameter.device_mesh
    whole = torch.empty(shape, dtype=dtype, device=parameter.device)
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
