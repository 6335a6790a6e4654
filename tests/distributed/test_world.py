"""Four ranks: who each one is on the mesh, and how they agree."""

import pytest
from tests.distributed.ranks import run_ranks

from automodel_cli.distributed.world import MESH_AXES, World


def places_and_agreement(world):
    return {
        "rank": world.rank,
        "axes": [[world.axis_rank(axis), world.axis_size(axis)] for axis in MESH_AXES],
        "dp": [world.dp_rank, world.dp_world],
        "any": [world.any(False), world.any(world.rank == 2)],
        "gather": world.gather({"of": world.rank, "text": "ä" * world.rank}),
        "broadcast": world.broadcast([world.rank, "first"]),
        "main": world.is_main,
    }


def test_four_ranks_as_dp2_tp2():
    results = run_ranks(4, places_and_agreement, mesh={"tp": 2})
    assert [result["rank"] for result in results] == [0, 1, 2, 3]
    assert [result["axes"] for result in results] == [
        [[0, 1], [dp, 2], [0, 1], [tp, 2]] for dp in (0, 1) for tp in (0, 1)
    ]
    assert [result["dp"] for result in results] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    for result in results:
        assert result["any"] == [False, True]
        assert result["gather"] == [{"of": rank, "text": "ä" * rank} for rank in range(4)]
        assert result["broadcast"] == [0, "first"]
        assert result["main"] == (result["rank"] == 0)


def test_one_process_answers_alike():
    answers = places_and_agreement(World.single())
    assert answers["axes"] == [[0, 1]] * 4
    assert answers["dp"] == [0, 1]
    assert answers["gather"] == [{"of": 0, "text": ""}]
    assert answers["broadcast"] == [0, "first"]


def fails_on_one(world):
    if world.rank == 1:
        raise ValueError("rank one has a problem")
    world.barrier()


def test_a_rank_that_raises_fails_the_test_with_its_traceback():
    with pytest.raises(AssertionError, match=r"rank \d ended with 1[\s\S]*rank one has a problem"):
        run_ranks(2, fails_on_one)
