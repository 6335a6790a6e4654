"""Boxes of sharded tensors, compared with what torch's FSDP and tensor parallelism give each rank; who writes what."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.checkpoint.storage import local_shards as shards
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError


def test_a_plain_tensor_is_held_whole_and_values_are_shared():
    tensor = torch.zeros(2, 3)
    shard = shards.local_shard("w", tensor)
    assert (shard.chunk, shard.whole) == (((0, 0), (2, 3)), (2, 3))
    shard.values[1, 1] = 5
    assert tensor[1, 1] == 5


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


def test_one_process_writes_all():
    tensors = {"w": torch.ones(2), "s": torch.tensor(1.0)}
    assert shards.shards_to_write(tensors, World.single()).keys() == tensors.keys()
