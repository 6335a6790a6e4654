"""Boxes of sharded tensors, compared with what torch's FSDP and tensor parallelism give each rank; who writes what."""

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

from automodel_cli.checkpoint.storage import local_shards as shards
from automodel_cli.checkpoint.storage.tensor_file import intersection
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError


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
    return shards.chunk_of(tuple(weight.shape), tuple(mesh.shape), coordinate, weight.placements)


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
            assert torch.equal(values, shards.narrowed(whole, (0, 0), chunk)), (rank, chunk)
            shards.narrowed(seen, (0, 0), chunk).add_(1)
    assert torch.equal(seen, torch.full_like(seen, mesh_shape[0])), "every element, once a replica"


def test_a_plain_tensor_is_held_whole_and_values_are_shared():
    tensor = torch.zeros(2, 3)
    shard = shards.local_shard("w", tensor)
    assert (shard.chunk, shard.whole) == (((0, 0), (2, 3)), (2, 3))
    shard.values[1, 1] = 5
    assert tensor[1, 1] == 5


@pytest.mark.parametrize(
    "placements",
    [
        (Partial(), Shard(0)),
        (_StridedShard(0, split_factor=3), Shard(0)),
        (_StridedShard(0, split_factor=2),),
    ],
)
def test_placements_that_are_not_known_are_refused(placements):
    with pytest.raises(CheckpointError, match="not known here"):
        shards.chunk_of((8, 8), (2,) * len(placements), (0,) * len(placements), placements)


def test_replicas_do_not_cut():
    assert shards.chunk_of((7, 4), (3, 2), (2, 1), (Replicate(), Shard(0))) == ((4, 0), (3, 4))


def chunks(*per_rank):
    return [{"w": [offsets, sizes, [4, 2]]} for offsets, sizes in per_rank]


def test_the_lowest_rank_that_holds_a_box_writes_it():
    first, second = ([0, 0], [3, 2]), ([3, 0], [1, 2])
    owners = shards.plan_writes(chunks(first, second, first, second, ([4, 0], [0, 2])))
    assert owners == {("w", ((0, 0), (3, 2))): 0, ("w", ((3, 0), (1, 2))): 1}


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ([([0, 0], [3, 2])], "6 elements of 'w', which has 8"),
        ([([0, 0], [3, 2]), ([2, 0], [2, 2])], "10 elements"),
    ],
)
def test_gaps_and_overlaps_are_refused(held, found):
    with pytest.raises(CheckpointError, match=found):
        shards.plan_writes(chunks(*held))


def test_empty_tensors_and_numbers_have_a_writer():
    owners = shards.plan_writes([{"none": [[0, 0], [0, 3], [0, 3]], "number": [[], [], []]}] * 2)
    assert set(owners.values()) == {0} and len(owners) == 2


def test_intersections_against_index_sets():
    spans = [(begin, size) for begin in range(4) for size in range(4)]
    for (b1, s1), (b2, s2) in itertools.product(spans, spans):
        common = set(range(b1, b1 + s1)) & set(range(b2, b2 + s2))
        found = intersection(((b1,), (s1,)), ((b2,), (s2,)))
        assert (found is None) == (not common)
        if found:
            assert set(range(found[0][0], found[0][0] + found[1][0])) == common


def test_one_process_writes_all():
    tensors = {"w": torch.ones(2), "s": torch.tensor(1.0)}
    assert shards.shards_to_write(tensors, World.single()).keys() == tensors.keys()
