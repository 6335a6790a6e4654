"""Keyed initial values: a function of seed and name, wherever the tensor lives."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from automodel_cli.models.init import (
    DrawOnCPU,
    children_first,
    copy_whole,
    derive_seed,
    fill_normal,
    is_on_meta,
)


def test_seeds_are_stable_across_versions_of_this_code():
    """Changing these numbers changes every run's initial weights."""
    assert derive_seed(42, "init", "wte.weight") == 7948576031406305706
    assert derive_seed(0) == 4246866556266386882


def test_seeds_differ_by_every_key():
    seeds = {derive_seed(seed, *keys) for seed in (0, 1) for keys in ((), ("a",), ("b",), ("a", 1), ("a", 2))}
    assert len(seeds) == 10


def test_rows_beyond_the_vocabulary_are_zero_and_do_not_shift_the_others():
    short, long = torch.empty(10, 4), torch.empty(16, 4)
    fill_normal(short, std=0.1, seed=1, name="w")
    fill_normal(long, std=0.1, seed=1, name="w", rows=10)
    assert torch.equal(long[:10], short)
    assert long[10:].abs().max() == 0


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_a_sharded_tensor_gets_its_part_of_the_same_numbers(one_rank, placement):
    plain, sharded = torch.zeros(6, 4), distribute_tensor(torch.zeros(6, 4), one_rank, [placement])
    for target in (plain, sharded):
        fill_normal(target, std=1.0, seed=3, name="w")
    assert torch.equal(sharded.full_tensor(), plain)
    again = distribute_tensor(torch.zeros(6, 4), one_rank, [placement])
    copy_whole(again, plain)
    assert torch.equal(again.full_tensor(), plain)
    with DrawOnCPU():
        torch.manual_seed(5)
        sharded.normal_(0.0, 2.0)
    torch.manual_seed(5)
    assert torch.equal(sharded.full_tensor(), torch.empty(6, 4).normal_(0.0, 2.0))


def test_children_come_before_parents():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    assert [name for name, _, _ in children_first(model, nn.Sequential)] == ["0", "1.0", "1", ""]
    owners = {name: owner for name, _, owner in children_first(model, nn.Sequential)}
    assert owners["1.0"] is model[1]
    assert owners["0"] is model


def test_meta_is_recognised():
    assert is_on_meta(nn.Linear(2, 2, device="meta"))
    assert not is_on_meta(nn.Linear(2, 2))
