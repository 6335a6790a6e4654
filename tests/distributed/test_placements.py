"""Chunks by placement, compared with what torch's FSDP and tensor parallelism give each rank; where chunks overlap."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from automodel_cli.distributed.chunks import intersection, narrowed
from automodel_cli.distributed.placements import chunk_of
from automodel_cli.errors import AutomodelError


def as_rank(rank: int, shape: tuple[int, ...]):
    """This process as one rank of a mesh whose collectives do nothing."""
    size = 1
    for places in shape:
        size *= places
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard", "tp"))


def own_box(weight, place: tuple[int, ...]):
    """The chunk at a place of (replicate, shard, tp); torch remembers the first rank that this process played."""
    mesh = weight.device_mesh
    by_name = dict(zip(("replicate", "shard", "tp"), place, strict=True))
    coordinate = [by_name[name] for name in mesh.mesh_dim_names]
    return chunk_of(tuple(weight.shape), tuple(mesh.shape), coordinate, weight.placements)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    ("rows", "mesh_shape"),
    [
        (8, (1, 2, 2)),
        (6, (1, 2, 2)),
        (9, (1, 4, 2)),
        (7, (1, 2, 4)),
        (17, (2, 3, 1)),
        (5, (2, 2, 2)),
        (3, (1, 4, 2)),
    ],
)
def test_boxes_are_what_fsdp_and_tensor_parallel_give_each_rank(rows, mesh_shape, dim):
    """Uneven sizes too: the last ranks hold less, or nothing."""
    whole = torch.arange(rows * 6.0).reshape(rows, 6)
    if 6 % mesh_shape[2] and dim == 1:
        pytest.skip("6 columns cannot be divided so")
    seen = torch.zeros_like(whole)
    for rank, place in enumerate(itertools.product(*map(range, mesh_shape))):
        try:
            mesh = as_rank(rank, mesh_shape)
            module = nn.Linear(6, rows, bias=False)
            placed = distribute_tensor(whole, mesh["tp"], [Shard(dim)], src_data_rank=None)
            module.weight = nn.Parameter(placed)
            fully_shard(module, mesh=mesh["replicate", "shard"] if mesh_shape[0] > 1 else mesh["shard"])
            values, chunk = module.weight.to_local().detach(), own_box(module.weight, place)
        finally:
            dist.destroy_process_group()
        assert chunk[1] == tuple(values.shape), (rank, chunk)
        if values.numel():
            assert torch.equal(values, narrowed(whole, (0, 0), chunk)), (rank, chunk)
            narrowed(seen, (0, 0), chunk).add_(1)
    assert torch.equal(seen, torch.full_like(seen, mesh_shape[0])), "every element, once a replica"


@pytest.mark.parametrize(
    "placements",
    [
        (Partial(), Shard(0)),
        (_StridedShard(0, split_factor=3), Shard(0)),
        (_StridedShard(0, split_factor=2),),
    ],
)
def test_placements_that_are_not_known_are_refused(placements):
    with pytest.raises(AutomodelError, match="not known here"):
        chunk_of((8, 8), (2,) * len(placements), (0,) * len(placements), placements)


def test_replicas_do_not_cut():
    assert chunk_of((7, 4), (3, 2), (2, 1), (Replicate(), Shard(0))) == ((4, 0), (3, 4))


def test_intersections_against_index_sets():
    spans = [(begin, size) for begin in range(4) for size in range(4)]
    for (b1, s1), (b2, s2) in itertools.product(spans, spans):
        common = set(range(b1, b1 + s1)) & set(range(b2, b2 + s2))
        found = intersection(((b1,), (s1,)), ((b2,), (s2,)))
        assert (found is None) == (not common)
        if found:
            assert set(range(found[0][0], found[0][0] + found[1][0])) == common
