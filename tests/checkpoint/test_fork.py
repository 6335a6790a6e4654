"""A run folder that begins with another run's checkpoint: links where there can be, copies else, all or nothing."""

import os
import shutil

import pytest
from tests.checkpoint.steps import make_step

from automodel_cli.checkpoint import fork, layout, lineage
from automodel_cli.checkpoint.lineage import BranchFile, Fork
from automodel_cli.checkpoint.run_files import verify_run
from automodel_cli.errors import CheckpointError
from automodel_cli.files import write_manifest

CONFIG = "model: {}\n"


def record(step, *, path="../trunk") -> BranchFile:
    fingerprint = layout.read_step_manifest(step)["self"]
    number = layout.step_of(step.name)
    return BranchFile(parent=Fork(run="trunk", path=path, step=number, checkpoint=fingerprint), change="as the trunk")


@pytest.fixture
def step(tmp_path):
    made = make_step(tmp_path / "trunk", 4)
    layout.write_pointer(tmp_path / "trunk", "LATEST", made.name)
    return made


def test_files_are_shared_and_outlive_the_trunk(tmp_path, step):
    layout.write_pointer(step.parent, "BEST", step.name)
    run = tmp_path / "runs" / "branch"
    assert fork.begin_run(run, step, record(step), CONFIG)
    assert (run / step.name / "state.json").samefile(step / "state.json")
    shutil.rmtree(step.parent)  # as its retention would
    assert layout.find_problem(layout.resolve(run)) is None and layout.resolve(run, "BEST").parent == run
    assert lineage.read(run).lineage == record(run / step.name).lineage
    found = verify_run(run)
    assert found["ok"] and not found["not_covered"] and found["files"] == 4
    assert [path.name for path in run.parent.iterdir()] == ["branch"]


def test_without_links_there_are_copies(tmp_path, step, monkeypatch):
    def no_links(*arguments, **keywords):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    assert not fork.begin_run(tmp_path / "branch", step, record(step), CONFIG)
    copied = tmp_path / "branch" / step.name / "state.json"
    assert copied.read_bytes() == b"{}" and copied.stat().st_ino != (step / "state.json").stat().st_ino


def test_a_step_deleted_meanwhile_leaves_nothing(tmp_path, step, monkeypatch):
    branch, link = record(step), os.link

    def deleted(source, target, **keywords):
        shutil.rmtree(step, ignore_errors=True)
        link(source, target, **keywords)

    monkeypatch.setattr(os, "link", deleted)
    with pytest.raises(CheckpointError, match="has deleted step_00000004 meanwhile"):
        fork.begin_run(tmp_path / "branch", step, branch, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["trunk"]


def test_a_damaged_step_is_refused(tmp_path, step):
    branch = record(step)
    (step / "state.json").write_text("{} ")
    with pytest.raises(CheckpointError, match="has 3 bytes"):
        fork.begin_run(tmp_path / "branch", step, branch, CONFIG)
    assert not (tmp_path / "branch").exists()


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_taken(tmp_path, step):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        fork.begin_run(tmp_path / "full", step, record(step), CONFIG)
    (tmp_path / "empty").mkdir()
    assert fork.begin_run(tmp_path / "empty", step, record(step), CONFIG)


def test_what_a_killed_attempt_left_is_cleared(tmp_path, step):
    left = tmp_path / "branch.automodel.tmp" / "step_00000004"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    fork.begin_run(tmp_path / "branch", step, record(step), CONFIG)
    assert not (tmp_path / "branch" / step.name / "half").exists() and not left.exists()


def test_a_step_replaced_meanwhile_is_refused(tmp_path, step):
    """As a run does that went back and saved it anew: the sizes of its files tell nothing."""
    branch = record(step)
    manifest = layout.read_step_manifest(step)
    write_manifest(step / layout.MANIFEST, manifest | {"metrics": {"loss": 1.0}})
    with pytest.raises(CheckpointError, match="was replaced meanwhile"):
        fork.begin_run(tmp_path / "branch", step, branch, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["trunk"]
