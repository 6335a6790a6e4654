"""Saved by 4 ranks, taken up by 2, then by 1, then by dp 2 x tp 2: the data stream of the undisturbed run to the row,
its losses within 1e-5; by the same mesh, to the bit. And a signal on any rank ends all of them with a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.effort import in_a_push
from tests.promises import elastic_runs

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.checkpoint.inspect.describe import describe_checkpoint
from automodel_cli.distributed.world import World

TOLERANCE = 1e-5
LEG = in_a_push(3, of=5)  # updates of each of the four
STEPS, STOP = 4 * LEG, LEG + 2
OPTIONS = {"step_scheduler": {"max_steps": STEPS, "ckpt_every_steps": "final", "local_batch_size": 2}}
TP = {
    **OPTIONS,
    "distributed": {"tp_size": 2},
    "checkpoint": {"is_async": True, "model_save_format": "torch_save"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    write_tokens(folder / "train.bin", tokens=5_000, seed=0, vocab_size=61)
    write_tokens(folder / "val.bin", tokens=300, seed=1, vocab_size=61)
    return folder


@pytest.fixture(scope="module")
def legs(folder):
    found = run_ranks(4, elastic_runs.four_ranks, str(folder), STOP, LEG, OPTIONS)[0]
    found["second"] = run_ranks(2, elastic_runs.leg, str(folder), "elastic", 2 * LEG, OPTIONS)[0]
    found["third"] = elastic_runs.leg(World.single(), str(folder), "elastic", 3 * LEG, OPTIONS)
    found["last"] = run_ranks(4, elastic_runs.leg, str(folder), "elastic", None, TP, mesh={"tp": 2})[0]
    return found


def test_the_same_mesh_goes_on_to_the_bit(legs):
    whole, first, second = legs["undisturbed"], legs["stopped"], legs["resumed"]
    assert first["exit_codes"] == [75] * 4 and second["exit_codes"] == [0] * 4
    assert first["latest"] == layout.step_folder(Path(), STOP).name and second["began"] == STOP
    assert {**first["losses"], **second["losses"]} == whole["losses"]
    assert {**first["rows"], **second["rows"]} == whole["rows"]
    assert second["weights"] == whole["weights"]


def test_other_numbers_of_ranks_go_on_with_the_same_data_and_losses(legs):
    whole, parts = legs["undisturbed"], [legs[name] for name in ("first", "second", "third", "last")]
    assert [part["began"] for part in parts] == [0, LEG, 2 * LEG, 3 * LEG]
    assert [set(part["exit_codes"]) for part in parts] == [{75}, {75}, {75}, {0}]
    rows = {step: found for part in parts for step, found in part["rows"].items()}
    assert rows == whole["rows"] and len(rows) == STEPS
    losses = {step: loss for part in parts for step, loss in part["losses"].items()}
    assert losses == pytest.approx(whole["losses"], abs=TOLERANCE)


@pytest.mark.parametrize("mesh", elastic_runs.MESHES)
def test_every_mesh_with_activation_checkpointing_and_saves_in_the_background(legs, mesh):
    assert legs["meshes"][mesh] == [[0] * 4, 2, True]


def test_what_each_number_of_ranks_left_is_sound(legs, folder):
    for step, shards in ((LEG, 4), (2 * LEG, 2), (3 * LEG, 1)):
        path = layout.step_folder(folder / "elastic", step)
        assert len(list((path / "optim").glob("*.safetensors"))) == shards
        assert verify.verify(path)["ok"]
        assert (
            describe_checkpoint(path)["parameters"]
            == describe_checkpoint(layout.step_folder(folder / "undisturbed", STEPS))["parameters"]
        )
    assert len(list((layout.step_folder(folder / "elastic", STEPS) / "model").glob("*.distcp"))) == 4
    assert (layout.step_folder(folder / "elastic", STEPS) / "hf" / "model.safetensors").is_file()


def test_a_save_in_the_background_says_how_long_training_waited(legs):
    lines = [line for line in legs["resumed"]["said"] if line.startswith("saved")]
    assert len(lines) == 1 and "in the background; training waited" in lines[0]
    assert any("SIGTERM" in line or "another rank" in line for line in legs["stopped"]["said"])


def test_a_second_run_in_the_folder_is_refused_on_every_rank(legs):
    told = legs["two runs"]
    assert len(set(told)) == 1 and "another process is writing to" in told[0], told


def test_a_signal_on_one_rank_ends_all_with_75_and_a_checkpoint(folder):
    found = run_ranks(2, elastic_runs.signals, str(folder))[0]
    latest = {name: phase["latest"] for name, phase in found.items()}
    assert latest == {
        "training": "step_00000004",
        "validation": "step_00000004",
        "saving": "step_00000005",
        "in the background": "step_00000005",
        "last step": "step_00000008",
        "last save": "step_00000008",
    }
    for name, phase in found.items():
        assert phase["exit_codes"] == [75, 75] and phase["left"] == [], (name, phase)
