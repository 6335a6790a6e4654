"""Saves by two ranks under faults: LATEST can always be used, nothing hangs, and every message names the file."""

from __future__ import annotations

import pytest
from tests.distributed.ranks import run_ranks
from tests.promises import checkpoint_faults


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    results = run_ranks(2, checkpoint_faults.everything, str(tmp_path_factory.mktemp("faults")))
    assert results[0] == results[1], "all ranks are told the same"
    return results[0]


def test_a_failing_disk_on_one_rank_fails_the_save_on_all_and_names_the_file(told):
    for name, (first, second) in told["disks"].items():
        assert first == second, name
        assert "step_00000002" in first and "step_00000001 is intact" in first, first
    disks = {name: both[0] for name, both in told["disks"].items()}
    second_shard = "shard-00002-model-00001-of-00001.safetensors"
    assert second_shard in disks["no space on rank 1"] and "No space left" in disks["no space on rank 1"]
    assert "(rank 1)" in disks["no space on rank 1"] and "(rank 0)" in disks["input/output error on rank 0"]
    assert "shard-00001" in disks["input/output error on rank 0"]
    assert second_shard in disks["read-only on rank 1"] and "Read-only" in disks["read-only on rank 1"]
    assert "manifest.json" in disks["no space for the manifest"]


def test_damage_is_found_by_all_ranks_with_the_name_of_the_file(told):
    damage = dict(told["damage"])
    for name in ("mended", "leftovers", "after them"):
        assert damage.pop(name) == ["fine", "fine"], name
    assert len(damage) == 10
    for name, (first, second) in damage.items():
        assert first == second and name.split()[1] in first, (name, first)
        assert "step_00000001" in first, "the way back is named"


def test_retention_spares_best_and_what_is_newer_than_what_was_loaded(told):
    assert told["retention"]["kept"] == ["1", "3", "4", "6"]


@pytest.mark.parametrize(
    ("ranks", "point", "number", "is_async"),
    [
        ([1], "fsync", 1, False),  # one rank, its shard written and not durable
        ([0], "rename", 2, False),  # the main one, between manifest and publication
        ([0, 1], "write", 5, True),  # all, in the midst of the tensors, in the background
    ],
    ids=["one-rank", "main-publishing", "all-in-background"],
)
def test_killed_in_a_save_the_earlier_checkpoint_is_good_and_the_survivors_say_so(
    tmp_path, ranks, point, number, is_async
):
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(2, checkpoint_faults.save_and_die, str(tmp_path), ranks, point, number, is_async)
    for rank in {0, 1} - set(ranks):
        told = (tmp_path / f"told_{rank}").read_text()
        assert "saving step_00000002 was given up" in told and "lost touch" in told
    assert checkpoint_faults.sound(tmp_path, {1, 2}) == 1
