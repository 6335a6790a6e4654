"""Runs become rows, with a stand-in for the training process; the folder alone says what is left to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from tests.assembly.sweeps.test_plan import BASE, sweep

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.sweeps import runner as module
from automodel_cli.assembly.sweeps.plan import PlannedRun
from automodel_cli.assembly.sweeps.runner import Runner, rows_so_far, state_of
from automodel_cli.config.schema.sweep import SweepRunConfig
from automodel_cli.errors import ConfigError
from automodel_cli.metrics.log_file import encode_record

STAND_IN = """
import json, pathlib, sys
folder, behaviour = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
what = behaviour.get(folder.name.split("_")[0], "finish")
if what == "fail":
    print("error: no room left"); sys.exit(1)
if what == "preempted":
    sys.exit(75)
lines = pathlib.Path(sys.argv[3]).read_bytes()
(folder / "metrics.jsonl").write_bytes(lines if what == "finish" else lines.splitlines(True)[0])
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Sets what the process of each depth does instead of training."""
    behaviour, records = tmp_path / "behaviour.json", tmp_path / "records"
    train = [{"kind": "train", "step": n, "tokens_seen": 256 * n, "tps": 512.0, "loss": 3.0} for n in (1, 2, 3, 4)]
    train[0]["tps"] = 25.6  # it compiled
    val = {"kind": "val", "name": "default", "step": 4, "loss": 2.5, "bits_per_byte": 1.25}
    records.write_bytes(b"".join(map(encode_record, [*train, val])))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    words = [str(tmp_path / "stand_in.py")]

    def arguments(run):
        return [str(run.folder), str(behaviour), str(records)]

    monkeypatch.setattr(PlannedRun, "arguments", property(arguments))
    real = module.Job
    monkeypatch.setattr(
        module, "Job", lambda name, command, *rest: real(name, [sys.executable, "-S", *words, *command[4:]], *rest)
    )

    def does(**by_depth):
        behaviour.write_text(json.dumps(by_depth))

    does()
    return does


def make(base, runs, **processes):
    said: list[str] = []
    folder = base.parent / "sweep"
    folder.mkdir(exist_ok=True)
    cfg = SweepRunConfig(base=str(base), output_dir=str(folder), **processes)
    runner = Runner(folder, cfg, {}, Reporter(say=said.append))
    return list(runner.make(runs)), runner, said


def test_a_row_has_what_fits_and_plots_read(base, stand_in):
    (run,) = sweep(base, depths=[2], budgets=[1e9])
    (row,), runner, _ = make(base, [run])
    assert (row.id, row.status, row.depth, row.budget, row.seed) == (run.id, "finished", 2, 1e9, 42)
    assert (row.steps, row.tokens, row.val_loss, row.val_bpb, row.core) == (4, 1024, 2.5, 1.25, None)
    assert row.step_s == 0.5 and row.compute_s == 2.0  # the update that compiled counts as the others
    assert row.params_scaling == run.params["scaling"] and row.wall_s > 0
    assert rows_so_far(base.parent / "sweep") == {run.id: row} and not runner.interrupted


def test_one_failure_is_loud_and_the_next_call_makes_what_is_missing(base, stand_in):
    runs = sweep(base, depths=[2, 3, 4])
    stand_in(d3="fail", d4="half")
    rows, _, said = make(base, runs)
    assert [row.status for row in rows] == ["finished", "failed", "failed"]
    assert rows[1].error == "no room left" and "no validation at its last step" in rows[2].error
    assert any("FAILED: no room left" in line for line in said)
    stored = rows_so_far(base.parent / "sweep")
    assert [state_of(run, stored) for run in runs] == ["finished", "failed", "failed"]

    stand_in()
    rows, _, said = make(base, runs)
    assert [row.status for row in rows] == ["finished"] * 3
    assert not any(line.startswith(f"{runs[0].id}: started") for line in said)
    assert not any("started" in line for line in make(base, runs)[2])


def test_an_interrupted_run_has_no_row_and_goes_on(base, stand_in):
    runs = sweep(base, depths=[2])
    stand_in(d2="preempted")
    rows, runner, _ = make(base, runs)
    assert rows == [] and runner.interrupted and state_of(runs[0], {}) == "interrupted"
    stand_in()
    rows, runner, said = make(base, runs)
    assert rows[0].status == "finished" and not runner.interrupted and any("(goes on)" in line for line in said)


def test_jobs_beside_one_another_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "cores", lambda: 8)
    slots = module._Slots(2, {"nproc-per-node": "2"})
    assert slots.environment(1) == {"CUDA_VISIBLE_DEVICES": "6,7", "OMP_NUM_THREADS": "2"}
    assert module._Slots(1, {}).environment(0) == {}
    with pytest.raises(ConfigError, match="do not fit 4 GPUs"):
        module._Slots(3, {"nproc-per-node": "2"})


def test_time_of_killed_attempts_counts(tmp_path):
    folder = Path(tmp_path)
    (folder / "attempts.jsonl").write_text('{"start": 1e9}\n{"start": 5.0}\n{"end": 7.5}\n{"sta')
    assert module._wall_s(folder) == 2.5
