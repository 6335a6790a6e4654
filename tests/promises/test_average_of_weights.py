"""The average of the weights: training does not notice it, a resume goes on with it to the bit, on any mesh."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.promises import averaged_runs
from tests.promises.averaged_runs import AVERAGED, MESHES, MIDDLE, STEPS

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.checkpoint.storage.formats import read_tensor, scan
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.config.schema.results import AverageConfig, EvaluateConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.recipes import average
from automodel_cli.recipes.evaluation import likelihood

TOLERANCE = 1e-5


def averages(step: Path) -> dict[str, torch.Tensor]:
    reader = StepReader(step)
    return {name: read_tensor(reader, one) for name, one in scan(reader, "ema").items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.equal(one[name], other[name]) for name in one)


def last(folder: Path, run: str) -> Path:
    return layout.step_folder(folder / run, STEPS)


def val_losses(step: Path) -> dict[str, float]:
    return layout.read_step_manifest(step)["metrics"]["val_loss"]


# ------------------------------------------------------------------------------------------ one process


def test_training_does_not_notice_it_and_a_kill_does_not_show(tiny_training, undisturbed):
    assert tiny_training.train(ema=0.7, kill=("step", 7)).returncode == -signal.SIGKILL
    assert tiny_training.train(ema=0.7).returncode == 0
    assert tiny_training.losses() == undisturbed.losses()
    assert tiny_training.weights(12) == undisturbed.weights(12)
    names = [record["name"] for record in tiny_training.records("val")]
    assert names == ["default", *["default", "default (ema)"] * (len(names) // 2)]  # at step 0 there is no average
    resumed = averages(tiny_training.run / "step_00000012")
    assert tiny_training.train("--fresh", ema=0.7).returncode == 0
    assert same(resumed, averages(tiny_training.run / "step_00000012"))
    assert (undisturbed.run / "step_00000012" / "ema").exists() is False


def test_the_mean_of_the_tail_is_that_of_its_checkpoints_and_what_eval_scores(tiny_training):
    scheduler = {"ckpt_every_steps": 1, "val_every_steps": "final", "validate_on_checkpoint": False}
    tiny_training.recipe(ema={"tail_steps": 4}, step_scheduler=scheduler).run_train_validation_loop()
    assert [(tiny_training.run / layout.step_name(step) / "ema").is_dir() for step in (7, 8, 9, 12)] == [
        False, False, True, True,
    ]  # fmt: skip
    run, out = str(tiny_training.run), str(tiny_training.folder / "mean")
    made = average.run(AverageConfig(checkpoints=(run,), last=4, output=out))
    step, reader = tiny_training.run / "step_00000012", StepReader(made.folder)
    for name, one in averages(step).items():
        torch.testing.assert_close(one, read_tensor(reader, scan(reader, "model")[name]), rtol=1e-6, atol=1e-7)
    scored = likelihood.run(EvaluateConfig(checkpoint=run, ema=True, precision="fp32", device="cpu"))
    want = val_losses(step)
    trained = likelihood.run(EvaluateConfig(checkpoint=run, precision="fp32", device="cpu"))
    assert scored.results["loss"] == pytest.approx(want["default (ema)"], abs=TOLERANCE)
    assert trained.results["loss"] == pytest.approx(want["default"], abs=TOLERANCE)
    assert abs(want["default (ema)"] - want["default"]) > 100 * TOLERANCE
    assert scored.output.name == "results_step_00000012_ema_val.json" and trained.output != scored.output


def test_it_is_switched_on_and_off_and_changed_with_a_line(tiny_training):
    def go(steps: int, **sections):
        scheduler = {"max_steps": steps, "val_every_steps": None, "ckpt_every_steps": "final"}
        recipe = tiny_training.recipe(step_scheduler=scheduler, lr_scheduler=None, **sections)
        recipe.run_train_validation_loop()
        held = (tiny_training.run / layout.step_name(steps) / "ema").is_dir()
        return held, [line for line in recipe.said if "average of" in line or "averaged" in line]

    assert go(2) == (False, [])
    assert go(4, ema=0.9) == (True, ["the average of the weights begins after step 2: step_00000002 holds none"])
    assert go(5, ema=0.9) == (True, [])
    held, lines = go(8, ema={"tail_steps": 2})
    assert held and lines == [
        "the average of the weights begins anew with step 7: that of step_00000005 is exponential"
    ]
    held, lines = go(9)
    assert not held
    assert lines == ["there is no ema section: the averaged weights of step_00000008 are not gone on with"]


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"ema": {"tail_steps": 13}}, "more than the 12 updates"),
        (
            {
                "ema": {"tail_steps": 3},
                "lr_scheduler": None,
                "step_scheduler": {"max_steps": None, "max_minutes": 1, "ckpt_every_steps": None},
            },
            "ends with the time",
        ),
    ],
)
def test_a_tail_that_cannot_be_is_refused_before_anything_is_made(tiny_training, sections, what):
    with pytest.raises(ConfigError, match=what):
        tiny_training.recipe(**sections)
    assert not list(tiny_training.run.glob("step_*"))


# ------------------------------------------------------------------------------------------ several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    write_tokens(folder / "train.bin", tokens=5_000, seed=0, vocab_size=61)
    write_tokens(folder / "val.bin", tokens=300, seed=1, vocab_size=61)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    found = run_ranks(2, averaged_runs.two_ranks, str(folder))[0]
    found["single"] = averaged_runs.leg(World.single(), str(folder), "single", **AVERAGED)
    found["elsewhere"] = averaged_runs.leg(World.single(), str(folder), "elsewhere", **AVERAGED)
    return found


def test_ranks_do_not_notice_it_either(runs):
    assert runs["fsdp2"]["losses"] == runs["without"]["losses"]
    assert runs["fsdp2"]["weights"] == runs["without"]["weights"]


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_keeps_the_average_of_one_process_and_scores_it(runs, folder, mesh):
    want, found = val_losses(last(folder, "single")), val_losses(last(folder, mesh))
    assert want.keys() == found.keys() == {"default", "default (ema)"}
    assert abs(want["default"] - want["default (ema)"]) > 100 * TOLERANCE
    assert found == pytest.approx(want, abs=TOLERANCE)
    of_one = averages(last(folder, "single"))
    for name, tensor in averages(last(folder, mesh)).items():
        torch.testing.assert_close(tensor, of_one[name], rtol=1e-3, atol=1e-4)
    shards = len(list((last(folder, mesh) / "ema").glob("*.safetensors")))
    assert shards == (1 if mesh == "ddp" else 2) and verify.verify(last(folder, mesh))["ok"]


def test_a_resume_on_the_same_mesh_goes_on_to_the_bit_and_on_another_within_rounding(runs, folder):
    assert runs["again"]["began"] == MIDDLE
    assert same(averages(last(folder, "again")), averages(last(folder, "fsdp2")))
    assert runs["elsewhere"]["began"] == MIDDLE
    assert val_losses(last(folder, "elsewhere")) == pytest.approx(val_losses(last(folder, "fsdp2")), abs=TOLERANCE)
    assert not any("average of the weights" in line for line in runs["elsewhere"]["said"])
