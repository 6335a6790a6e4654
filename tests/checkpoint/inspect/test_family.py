"""The tree of runs and branches, from what is there."""

import shutil

import pytest
from tests.checkpoint.steps import make_step

from automodel_cli.checkpoint import lineage
from automodel_cli.checkpoint.inspect.family import describe_family
from automodel_cli.checkpoint.layout import read_step_manifest
from automodel_cli.checkpoint.lineage import BranchFile, Fork
from automodel_cli.errors import CheckpointError
from automodel_cli.metrics.log_file import METRICS_NAME, encode_record


def run(folder, *steps: int):
    for step in steps:
        make_step(folder, step)
    return folder


def branch(folder, parent: str, step: int, *above: Fork, change: str = "cooldown"):
    run(folder, step, step + 4)
    source = folder / parent / f"step_{step:08d}"
    checkpoint = read_step_manifest(source if source.exists() else folder / source.name)["self"]
    fork = Fork(run=parent.rpartition("/")[2], path=parent, step=step, checkpoint=checkpoint)
    lineage.write(folder, BranchFile(parent=fork, ancestors=above, change=change))
    return fork


def names(nodes) -> dict:
    return {node["name"]: names(node["branches"]) for node in nodes}


@pytest.fixture
def runs(tmp_path):
    """trunk with a and b, aa of a; and a run that is alone."""
    run(tmp_path / "trunk", 4, 8)
    fork = branch(tmp_path / "a", "../trunk", 4)
    branch(tmp_path / "b", "../trunk", 8)
    branch(tmp_path / "deep" / "aa", "../../a", 8, Fork(**{**fork.model_dump(), "path": "../../trunk"}))
    run(tmp_path / "alone", 4)
    return tmp_path


TREE = {"trunk": {"a": {"deep/aa": {}}, "b": {}}}


@pytest.mark.parametrize("at", [".", "trunk", "a", "b"])
def test_the_same_tree_from_every_member(runs, at):
    found = describe_family(runs / at)
    assert names(found["runs"]) == TREE and found["notes"] == []
    (trunk,) = found["runs"]
    assert trunk["step"] == 8 and "from_step" not in trunk
    assert [one["from_step"] for one in trunk["branches"]] == [4, 8]
    assert trunk["branches"][1]["step"] == 12 and trunk["branches"][1]["problem"] is None


def test_what_is_gone_is_named_by_those_that_come_from_it(runs):
    shutil.rmtree(runs / "a")
    (trunk,) = describe_family(runs)["runs"]
    assert names([trunk]) == TREE
    assert [one["there"] for one in trunk["branches"]] == [False, True] and trunk["branches"][0]["from_step"] == 4
    shutil.rmtree(runs / "trunk")
    assert names(describe_family(runs)["runs"]) == TREE


def test_losses_are_those_of_the_log(runs):
    losses = [4.0, 2.0, 3.0, float("nan")]
    records = [{"kind": "val", "step": n, "name": "default", "loss": loss} for n, loss in enumerate(losses, 5)]
    records.append({"kind": "train", "step": 11, "loss": 3.5})
    (runs / "a" / METRICS_NAME).write_bytes(b"".join(map(encode_record, records)))
    found = describe_family(runs)["runs"][0]["branches"][0]
    assert (found["val_loss"], found["best_val_loss"], found["step"]) == (3.0, 2.0, 11)


def test_a_parent_that_was_begun_anew_is_told(runs):
    shutil.rmtree(runs / "trunk" / "step_00000008")
    made = make_step(runs / "trunk", 8)
    manifest = (made / "manifest.json").read_text()
    assert describe_family(runs)["runs"][0]["branches"][1]["problem"] is None  # equal content, equal hash
    from automodel_cli import files

    content = {**read_step_manifest(made), "metrics": {"loss": 1.0}}
    files.write_manifest(made / "manifest.json", content)
    assert (made / "manifest.json").read_text() != manifest
    assert "no longer the checkpoint" in describe_family(runs)["runs"][0]["branches"][1]["problem"]


@pytest.mark.parametrize(("at", "message"), [("alone", "no branch of .* lies in"), ("nowhere", "there is no folder")])
def test_where_there_is_no_tree(runs, at, message):
    with pytest.raises(CheckpointError, match=message):
        describe_family(runs / at)


def test_branches_in_a_circle_and_damaged_ones(tmp_path):
    run(tmp_path / "a", 4)
    branch(tmp_path / "b", "../a", 4)
    branch(tmp_path / "a", "../b", 8)
    with pytest.raises(CheckpointError, match="is a branch of another"):
        describe_family(tmp_path)
    with pytest.raises(CheckpointError, match="no branch of"):
        describe_family(tmp_path / "a")
    run(tmp_path / "c", 4)
    branch(tmp_path / "d", "../c", 4)
    (tmp_path / "a" / lineage.NAME).write_text("{")
    found = describe_family(tmp_path)
    assert names(found["runs"]) == {"a": {"b": {}}, "c": {"d": {}}} and "branch.json" in found["notes"][0]
