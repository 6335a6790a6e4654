"""A planted bad shard: it is found and named, left out, or gone around; killed anywhere, the run ends the same."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TinyTraining, write_tokens
from tests.token_files import write_token_file

from automodel_cli.config.schema.results import InspectDataConfig
from automodel_cli.recipes import inspect_data
from automodel_cli.recipes.pretraining import loop

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, TOKENS, BAD_AT, STEPS = 8, 32, 64, 76
BAD = [BAD_AT * ROWS, (BAD_AT + 2) * ROWS]  # samples of two updates
SPIKED = BAD_AT + 1  # the first update that they are in


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Learnable text, two updates of noise, and more text, in files that are read in order."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    write_tokens(folder / "a.bin", tokens=BAD_AT * ROWS * TOKENS + 1, seed=0)
    noise = rng.integers(0, 64, 2 * ROWS * TOKENS + 1)
    write_token_file(folder / "b.bin", noise, dtype="uint16", starts=np.array([0, 300]))
    write_tokens(folder / "c.bin", tokens=20 * ROWS * TOKENS + 1, seed=1)
    return folder


def settings(shards: Path, **spikes: Any) -> dict[str, Any]:
    files = [str(shards / f"{name}.bin") for name in "abc"]
    return {
        "dataset": {"_target_": "NanogptDataset", "seq_len": TOKENS, "file_pattern": files},
        "validation_dataset": None,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.003},
        "step_scheduler": {"max_steps": STEPS, "ckpt_every_steps": 10, "val_every_steps": None},
        "spikes": {"window": 48, "threshold": 3.0, **spikes} if spikes else None,
    }


def trained(folder: Path, shards: Path, *overrides: str, **spikes: Any):
    folder.mkdir(exist_ok=True)
    run = TinyTraining(folder, shards)
    recipe = run.recipe(*overrides, **settings(shards, **spikes))
    recipe.run_train_validation_loop()
    return run, recipe


@pytest.fixture(scope="module")
def rewound(tmp_path_factory, shards) -> tuple[TinyTraining, Any]:
    return trained(tmp_path_factory.mktemp("rewound"), shards, action="rewind")


def position(run: TinyTraining, step: int) -> dict[str, Any]:
    return json.loads((run.run / f"step_{step:08d}" / "loader.json").read_text())


def test_a_spike_is_noted_with_its_windows_and_documents(tmp_path, shards):
    noted, recipe = trained(tmp_path / "noted", shards, action="note")
    plain, _ = trained(tmp_path / "plain", shards)
    first, second = noted.records("spike")
    assert [first["step"], second["step"]] == [SPIKED, SPIKED + 1] and first["action"] == "note"
    assert (first["first_sample"], second["end_sample"]) == tuple(BAD)
    assert first["loss"] > first["loss_limit"] and first["num_windows"] == ROWS
    assert {window["file"] for window in first["windows"]} == {str(shards / "b.bin")}
    assert {one["number"] for window in first["windows"] for one in window["documents"]} == {0}
    assert [record["step"] for record in noted.records() if record.get("spike")] == [SPIKED, SPIKED + 1]
    said = next(line for line in recipe.said if line.startswith("spike at step 65"))
    assert said in recipe.said and any("b.bin: 8 windows, tokens 0 to 257, document 0" in line for line in recipe.said)
    assert noted.losses() == plain.losses() and noted.weights(STEPS) == plain.weights(STEPS)
    assert noted.records("val") == plain.records("val") == [] and plain.records("spike") == []


@pytest.fixture(scope="module")
def skipped(tmp_path_factory, shards) -> tuple[TinyTraining, Any]:
    return trained(tmp_path_factory.mktemp("skipped"), shards, action="skip")


def test_a_spike_that_is_skipped_leaves_the_weights_alone(tmp_path, shards, skipped):
    run, recipe = skipped
    assert [record["action"] for record in run.records("spike")] == ["skip", "skip"]
    assert recipe.state.skipped_steps == recipe.state.skipped_in_a_row == 0  # these are of what is not finite
    short, long = (f"step_scheduler.max_steps={last}" for last in (BAD_AT, BAD_AT + 2))
    before, _ = trained(tmp_path / "before", shards, short, "lr_scheduler=null", action="skip")
    after, _ = trained(tmp_path / "after", shards, long, "lr_scheduler=null", action="skip")
    assert before.weights(BAD_AT) == after.weights(BAD_AT + 2)


def test_going_back_is_having_been_told_from_the_beginning(tmp_path, shards, rewound):
    run, _ = rewound
    told, _ = trained(tmp_path / "told", shards, f"spikes.skip_samples=[{BAD}]", action="note")
    assert run.losses() == told.losses() and sorted(run.losses()) == list(range(1, STEPS + 1))
    assert run.weights(STEPS) == told.weights(STEPS)
    assert position(run, STEPS) == position(told, STEPS)
    assert position(run, STEPS)["skipped"] == [BAD] and "skipped" not in position(run, 60)
    events = run.records("spike")
    assert [(one["step"], one["rewound_to"]) for one in events] == [(SPIKED, 60), (SPIKED, 60)]
    assert [one["skipped_samples"] for one in events] == [[BAD[0], BAD[0] + ROWS], [BAD[0] + ROWS, BAD[1]]]
    superseded = (run.run / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in superseded if '"train"' in line] == 2 * list(range(61, SPIKED + 1))


def test_going_back_takes_averages_and_schedules_along(tmp_path, shards):
    """A batch size of 4 for 20 updates, which are 10 of 8: the bad samples come ten updates later."""
    changing = (
        "ema=0.9",
        "step_scheduler.max_steps=86",
        "step_scheduler.global_batch_size=[{until_step: 20, size: 4}, {size: 8}]",
        "step_scheduler.seq_len_schedule=[{until_step: 78, seq_len: 16}]",
    )
    run, _ = trained(tmp_path / "back", shards, *changing, action="rewind")
    assert [one["step"] for one in run.records("spike")] == [SPIKED + 10, SPIKED + 10]
    told, _ = trained(tmp_path / "told", shards, *changing, f"spikes.skip_samples=[{BAD}]", action="note")
    assert run.losses() == told.losses() and position(run, 86) == position(told, 86)
    for kind in ("model", "ema"):
        (one,), (other,) = ((each.run / "step_00000086" / kind).glob("*.safetensors") for each in (run, told))
        assert one.read_bytes() == other.read_bytes()


def test_inspect_data_goes_around_what_was_skipped(tmp_path, rewound):
    run = TinyTraining(tmp_path, rewound[0].data)
    shutil.copytree(rewound[0].run, run.run)
    shown = [inspect_data.run(InspectDataConfig(run=str(run.run), step=step)) for step in (SPIKED - 1, SPIKED)]
    assert [one["first_sample"] for one in shown] == [BAD[0] - ROWS, BAD[1]]
    shutil.rmtree(run.run / f"step_{STEPS:08d}")  # the run is on its way: its newest checkpoint does not know yet
    shutil.rmtree(run.run / "step_00000070")
    assert inspect_data.run(InspectDataConfig(run=str(run.run), step=SPIKED))["first_sample"] == BAD[1]


def test_a_margin_goes_around_both_with_one_rewind(tmp_path, shards):
    run, _ = trained(tmp_path / "margin", shards, action="rewind", rewind_margin=1)
    (event,) = run.records("spike")
    assert event["skipped_samples"] == [BAD[0] - ROWS, BAD[1]]


def test_a_run_goes_back_only_so_often(tmp_path, shards):
    run, _ = trained(tmp_path / "bounded", shards, action="rewind", max_rewinds=1)
    assert [one["action"] for one in run.records("spike")] == ["rewind", "note"]
    assert "gone back to step 60 1 times already" in run.records("spike")[1]["reason"]
    early, _ = trained(tmp_path / "early", shards, "step_scheduler.ckpt_every_steps=70", action="rewind")
    assert {one["reason"] for one in early.records("spike")} == {"there is no checkpoint before it"}


@pytest.mark.parametrize("point", [("step", 63), ("step", 67), ("step", 71), ("rename", 14)])
def test_killed_around_a_rewind_and_resumed(point, tmp_path, shards, rewound):
    run = TinyTraining(tmp_path, shards)
    killed = run.train(kill=point, **settings(shards, action="rewind"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run.train(**settings(shards, action="rewind"))
    assert done.returncode == 0, done.stderr
    whole, _ = rewound
    assert run.losses() == whole.losses() and run.weights(STEPS) == whole.weights(STEPS)
    assert position(run, STEPS) == position(whole, STEPS)


@pytest.mark.parametrize("last", [SPIKED - 2, SPIKED - 1, SPIKED])
def test_a_run_that_is_stopped_before_a_spike_judges_it_alike(last, tmp_path, shards, skipped, monkeypatch):
    """The limits of the next updates are in the checkpoint, whenever it was written."""
    whole, _ = skipped
    stopped = TinyTraining(tmp_path / "stopped", shards)
    stopped.folder.mkdir()
    recipe = stopped.recipe(**settings(shards, action="skip"))
    honest = loop.one_update

    def until_the_last(progress, microbatches):
        recipe.run.stop.name = "SIGTERM" if progress.run.state.step + 1 == last else None
        return honest(progress, microbatches)

    monkeypatch.setattr(loop, "one_update", until_the_last)
    assert recipe.run_train_validation_loop().step == last
    monkeypatch.undo()
    trained(tmp_path / "stopped", shards, action="skip")
    assert stopped.weights(STEPS) == whole.weights(STEPS)
    assert [record["step"] for record in stopped.records("spike")] == [SPIKED, SPIKED + 1]


def test_two_ranks_go_back_together(tmp_path, shards):
    runs = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        runs.append(TinyTraining(folder, shards))
        words = ("--nproc-per-node", str(ranks), "model.dropout=0")
        done = runs[-1].train(*words, **settings(shards, action="rewind", rewind_margin=1))
        assert done.returncode == 0, done.stderr
    one, two = (run.records("spike") for run in runs)
    keys = ("step", "action", "rewound_to", "skipped_samples", "windows")
    assert [[event[key] for key in keys] for event in one] == [[event[key] for key in keys] for event in two] != []
    assert runs[1].losses() == pytest.approx(runs[0].losses(), abs=1e-5)


def test_a_run_goes_back_in_its_own_course(tmp_path, shards):
    """Steps of another course, newer than the one it was restored from, are none of its past."""
    trained(tmp_path, shards, "step_scheduler.max_steps=64", "lr_scheduler=null", action="rewind")
    other = ("checkpoint.restore_from=step_00000050", "optimizer.lr=0.002", "lr_scheduler=null")
    run, _ = trained(tmp_path, shards, *other, "step_scheduler.ckpt_every_steps=100", action="rewind")
    assert {one["rewound_to"] for one in run.records("spike")} == {50}


def test_what_was_gone_around_stays_in_the_log_of_a_resume(tmp_path, shards, rewound, monkeypatch):
    """Stopped at the spike itself: the run goes back, and saves the update after that."""
    stopped = TinyTraining(tmp_path, shards)
    recipe = stopped.recipe(**settings(shards, action="rewind"))
    honest = loop.one_update

    def stop_at_the_spike(progress, microbatches):
        recipe.run.stop.name = recipe.run.stop.name or ("SIGTERM" if progress.run.state.step + 1 == SPIKED else None)
        return honest(progress, microbatches)

    monkeypatch.setattr(loop, "one_update", stop_at_the_spike)
    assert recipe.run_train_validation_loop().step == 61
    monkeypatch.undo()
    trained(tmp_path, shards, action="rewind")
    whole, _ = rewound
    assert stopped.weights(STEPS) == whole.weights(STEPS)
    events = ([one["skipped_samples"] for one in run.records("spike")] for run in (stopped, whole))
    assert next(events) == next(events)
