"""What fails on one rank fails on all; a rank that is busy is waited for beyond the time limit of its group."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch.distributed as dist
from tests.distributed.ranks import run_ranks

from automodel_cli.checkpoint.all_ranks import all_ranks, on_rank_zero
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError, ConfigError

_LIMIT_S, _SLOW_S = 4, 5


def fail_on(rank, error):
    def work():
        if rank == 1:
            raise error
        return rank

    return work


def caught(world, work) -> list[str]:
    try:
        return ["fine", *map(str, all_ranks(world, work, what="testing"))]
    except Exception as error:
        return [type(error).__name__, str(error)]


def slow(world: World) -> list[int]:
    time.sleep(_SLOW_S if world.rank == 1 else 0)
    return [world.rank]


def on_two_ranks(world: World) -> dict:
    found = {
        "fine": caught(world, lambda: 10 + world.rank),
        "people": caught(world, fail_on(world.rank, ConfigError("no such thing", "buy one"))),
        "bug": caught(world, fail_on(world.rank, KeyError("k"))),
        "main": on_rank_zero(world, lambda: {"by": world.rank}, what="testing"),
    }
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=_LIMIT_S), group)
    found["slow"] = all_ranks(world, lambda: slow(world), what="testing")
    return found


def test_outcomes_are_those_of_all_ranks():
    first, second = run_ranks(2, on_two_ranks)
    assert first["fine"] == second["fine"] == ["fine", "10", "11"]
    assert first["people"] == second["people"] == ["CheckpointError", "no such thing (rank 1)\nbuy one"]
    assert first["bug"][0] == "CheckpointError" and "KeyError" in first["bug"][1]
    assert second["bug"] == ["KeyError", "'k'"]
    assert first["main"] == second["main"] == {"by": 0}
    assert first["slow"] == second["slow"] == [[0], [1]], "longer than the time limit of the group"


def test_one_process_just_does_it():
    assert all_ranks(World.single(), lambda: "x", what="testing") == ["x"]
    with pytest.raises(ConfigError):
        all_ranks(World.single(), fail_on(1, ConfigError("a", "b")), what="testing")
    with pytest.raises(CheckpointError):
        on_rank_zero(World.single(), fail_on(1, CheckpointError("a", "b")), what="testing")
