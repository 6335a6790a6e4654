"""Runs inside other runs' folders: found, named, and none taken for another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.assembly.scoring import results_file
from automodel_cli.checkpoint import layout, nested_runs, retention
from automodel_cli.checkpoint.inspect import describe
from automodel_cli.config.schema.results import PlotConfig
from automodel_cli.errors import CheckpointError, DataError
from automodel_cli.recipes import plot


def make_run(folder: Path, step: int = 4) -> Path:
    step_folder = layout.step_folder(folder, step)
    step_folder.mkdir(parents=True)
    for path in (
        step_folder / layout.MANIFEST,
        folder / "metrics.jsonl",
        folder / "config.yaml",
        folder / ".lock",
    ):
        path.write_text("")
    layout.write_pointer(folder, "LATEST", step_folder.name)
    return folder


@pytest.fixture
def nested(tmp_path) -> Path:
    outer = make_run(tmp_path / "checkpoints")
    make_run(outer / "small")
    make_run(outer / "group" / "big")
    (outer / "notes").mkdir()
    (outer / "notes" / "why.txt").write_text("mine")
    return outer


def test_runs_are_found_below_and_above(nested):
    found = nested_runs.runs_below(nested)
    assert found == [nested / "group/big", nested / "small"]
    assert nested_runs.run_above(nested / "group/big") == nested
    assert nested_runs.run_above(nested) is None
    with layout.run_lock(nested / "starting"):
        assert nested_runs.notes(nested) == [
            f"{nested} also holds other runs, which stay as they are: group/big, small, starting (training now)"
        ]
    assert nested_runs.notes(nested / "small") == [f"this run lies inside the folder of another one, {nested}"]


@pytest.mark.parametrize("scored", [["val.bin"], ["fineweb-val.bin", "core"], [f"set{n}" * 9 for n in range(9)]])
def test_results_and_what_a_killed_writer_left_belong_to_the_run(tmp_path, scored):
    """A fresh run of the same steps is not to stand beside the scores of the one before it."""
    run, content = make_run(tmp_path / "run"), {"format": "automodel-results/1", "settings": {}}
    for fingerprint in ("xxh3:1", "xxh3:2"):
        results = {**content, "checkpoint": {"fingerprint": fingerprint}}
        path = results_file.store(results, None, layout.step_folder(run, 4), scored)
        assert path is not None and path in nested_runs.files_of_run(run)
    for name in ("LATEST", "config.yaml", "metrics.jsonl"):
        (run / f"{name}.automodel.tmp").write_text("")
    (run / "results of mine.json").write_text("")
    left = set(run.iterdir()) - set(nested_runs.files_of_run(run))
    assert {path.name for path in left} == {".lock", "results of mine.json"}


def test_what_belongs_to_a_run_is_told_from_runs_below_and_strangers_files(nested):
    for name in ("BEST", "results.json", "results_tasks.json", "curves.png", "step_00000008.tmp"):
        (nested / name).write_text("")
    (nested / "profile").mkdir()
    (nested / "results").mkdir()
    assert {path.name for path in nested_runs.files_of_run(nested)} == {
        "BEST", "LATEST", "config.yaml", "curves.png", "metrics.jsonl", "profile", "results.json",
        "results_tasks.json", "step_00000004", "step_00000008.tmp",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["profile/other", "step_00000004", "wandb"])
def test_a_run_inside_of_what_belongs_to_another_is_in_doubt(nested, place):
    make_run(nested / place, step=1)
    with pytest.raises(CheckpointError, match="is a run of its own, inside of what"):
        nested_runs.files_of_run(nested)


def test_a_lock_in_what_belongs_to_a_run_is_in_doubt(nested):
    with layout.run_lock(nested / "profile"), pytest.raises(CheckpointError, match="is a run of its own"):
        nested_runs.files_of_run(nested)
    assert nested_runs.files_of_run(nested)


def test_a_folder_of_runs_names_them(tmp_path):
    make_run(tmp_path / "small")
    hint = "runs below it: small; name one of them"
    with pytest.raises(CheckpointError, match="holds no checkpoint") as caught:
        describe.kind_of(tmp_path)
    assert caught.value.hint == hint
    with pytest.raises(DataError, match="has logged nothing itself") as drawn:
        plot.run(PlotConfig(runs=(str(tmp_path),)))
    assert drawn.value.hint == hint


def test_retention_and_pointers_know_their_own_steps_only(nested):
    make_run(nested, step=8)
    of_this_run = retention.Retention(nested, keep_last=1, keep_every=None)
    of_this_run.protected = set()
    of_this_run.apply()
    assert layout.list_steps(nested) == [8]
    assert layout.list_steps(nested / "small") == layout.list_steps(nested / "group/big") == [4]
    (nested / "LATEST").unlink()
    for step in layout.list_steps(nested):
        (layout.step_folder(nested, step) / layout.MANIFEST).unlink()
    assert layout.latest(nested) is None


def test_a_folder_that_is_not_ours_to_read_hides_no_other(nested, monkeypatch):
    is_run = nested_runs.is_run

    def refused(folder):
        if folder.name == "notes":  # as stat does of what lies in lost+found
            raise PermissionError(13, "Permission denied")
        return is_run(folder)

    monkeypatch.setattr(nested_runs, "is_run", refused)
    assert nested_runs.runs_below(nested) == [nested / "group" / "big", nested / "small"]
