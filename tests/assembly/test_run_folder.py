"""``--fresh``: the run's own files go aside, everything else stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoint.test_nested_runs import make_run

from automodel_cli.assembly.run_folder import move_aside
from automodel_cli.checkpoint import layout
from automodel_cli.errors import CheckpointError
from automodel_cli.files import is_locked
from automodel_cli.metrics.read import read_metrics


def test_only_the_runs_own_files_move(tmp_path):
    outer = make_run(tmp_path / "checkpoints")
    inner = make_run(outer / "small")
    (outer / "todo.txt").write_text("mine")
    with layout.run_lock(inner):
        moved = move_aside(outer)
        assert is_locked(inner / layout.LOCK_NAME)
    assert moved == tmp_path / "checkpoints.old-1"
    assert {path.name for path in moved.iterdir()} == {
        "LATEST",
        "config.yaml",
        "metrics.jsonl",
        "step_00000004",
    }
    assert {path.name for path in outer.iterdir()} == {".lock", "small", "todo.txt"}
    assert layout.list_steps(inner) == [4]
    assert move_aside(outer) is None


def test_the_present_folder_is_moved_too(tmp_path, monkeypatch):
    make_run(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert move_aside(Path()) == tmp_path / "here.old-1"


@pytest.mark.parametrize("below", ["", "step_00000002"])
def test_weights_that_would_move_away_are_refused_before(tiny_training, below):
    few = ("--step_scheduler.max_steps", "2", "--validation_dataset", "null")
    tiny_training.recipe(*few).run_train_validation_loop()
    with pytest.raises(CheckpointError, match="init_from asks for its weights"):
        tiny_training.recipe(*few, "--init_from", str(tiny_training.run / below), fresh=True)
    assert layout.list_steps(tiny_training.run) == [2]


def test_a_folder_that_cannot_be_made_beside_it_is_said(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")

    def refuse(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(type(run), "rename", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be moved to .*cross-device"):
        move_aside(run)
    assert layout.list_steps(run) == [4]


def test_a_fresh_start_in_the_outer_folder_leaves_the_run_below_it_training(tiny_training):
    few = ("--step_scheduler.max_steps", "2", "--validation_dataset", "null")
    tiny_training.recipe(*few).run_train_validation_loop()
    below = tiny_training.run / "below"
    inner = tiny_training.recipe(*few, "--checkpoint.checkpoint_dir", str(below))
    assert f"note: this run lies inside the folder of another one, {tiny_training.run}" in inner.said
    outer = tiny_training.recipe(*few, fresh=True)
    moved = tiny_training.run.with_name("run.old-1")
    assert f"moved the earlier run to {moved}" in outer.said
    stay = f"note: {tiny_training.run} also holds other runs, which stay as they are: below (training now)"
    assert stay in outer.said
    outer.run_train_validation_loop()
    inner.run_train_validation_loop()
    assert [layout.list_steps(folder) for folder in (moved, tiny_training.run, below)] == [[2], [2], [2]]
    logged = [read_metrics(folder).train["step"].tolist() for folder in (moved, tiny_training.run, below)]
    assert logged == [[1, 2]] * 3
