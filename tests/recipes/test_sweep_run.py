"""A sweep and a race of real tiny trainings: killed, gone on with, fitted."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
import yaml
from tests import nursery
from tests.assembly.sweeps.test_plan import BASE

SWEEP = {"depths": [1, 2], "jobs": 1}


@pytest.fixture
def folder(tmp_path, tiny_tokens):
    base = json.loads(json.dumps(BASE))
    base["dataset"]["file_pattern"] = str(tiny_tokens / "train.bin")
    base["validation_dataset"]["file_pattern"] = str(tiny_tokens / "val.bin")
    base |= {"compile": False, "precision": "fp32"}
    base["step_scheduler"] |= {"max_steps": 3, "val_on_start": False, "limit_val_batches": 2}
    base["checkpoint"] = {"save_consolidated": False}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {**SWEEP, "base": str(tmp_path / "base.yaml"), "output_dir": str(tmp_path / "sweep")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


def command(*words):
    return [sys.executable, "-m", "automodel_cli", *map(str, words)]


def automodel(*words):
    return nursery.run(command(*words), capture_output=True, text=True, timeout=300)


def test_a_killed_sweep_goes_on_and_finished_runs_are_skipped(folder):
    shown = automodel("sweep", "run", "-c", folder / "sweep.yaml", "--dry-run")
    assert shown.returncode == 0 and not (folder / "sweep").exists()

    with (folder / "out").open("w") as out:
        first = nursery.Popen(command("sweep", "run", "-c", folder / "sweep.yaml"), stdout=out, stderr=out)
        while not list((folder / "sweep").glob("d1_*/output.log")) and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 75, (folder / "out").read_text()
    assert not (folder / "sweep" / "results.jsonl").exists()

    done = automodel("sweep", "run", "-c", folder / "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [(row["depth"], row["steps"], row["tokens"]) for row in rows] == [(1, 3, 768), (2, 3, 768)]
    assert all(row["status"] == "finished" and row["val_loss"] > 0 and row["step_s"] > 0 for row in rows)
    again = automodel("sweep", "run", "-c", folder / "sweep.yaml")
    assert again.returncode == 0 and "started" not in again.stdout and "2 of 2 runs finished" in again.stdout


def test_a_race_of_a_run_against_itself_finds_no_difference(folder):
    (folder / "b.yaml").write_text("# the same\n" + (folder / "base.yaml").read_text())
    words = ["--metric", "val_loss", "--seeds", "1", "--output-dir", folder / "race", "--json"]
    words += ["--set", "model.depth=1", "--set", "step_scheduler.max_steps=1"]
    done = automodel("race", folder / "base.yaml", folder / "b.yaml", *words)
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["gain"], found["pairs"]) == ("no difference found", 0.0, 1)
    assert found["interval"] is None, "infinite, which JSON cannot say"
    assert all(pair["a"] == pair["b"] for pair in found["results"])
    assert len(list((folder / "race").glob("[ab]_s*"))) == 2
