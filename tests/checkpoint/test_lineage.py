"""``branch.json``: written and read back; a stranger's is refused."""

import pytest

from automodel_cli.checkpoint import lineage
from automodel_cli.checkpoint.lineage import BranchFile, Fork
from automodel_cli.checkpoint.run_files import verify_run
from automodel_cli.errors import CheckpointError
from automodel_cli.files import write_manifest

FORK = Fork(run="trunk", path="../trunk", step=4, checkpoint="xxh3:0123456789abcdef")
CHANGES = {"change": "cooldown", "changed": ("a: 1 -> 2",), "asked": {"shape": "linear"}}
BRANCH = BranchFile(parent=FORK, ancestors=(FORK,), **CHANGES)


def test_what_was_written_is_read(tmp_path):
    assert lineage.read(tmp_path) is None
    lineage.write(tmp_path, BRANCH)
    found = lineage.read(tmp_path)
    assert found.lineage == BRANCH.lineage and found.asked == BRANCH.asked
    assert set(found.lineage.model_dump()) == {"parent", "ancestors", "change", "changed"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a manifest"),
        ('{"parent": {"run": 3}, "self": "xxh3:0000000000000000"}', "does not match"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_strangers_branch_file(tmp_path, content, message):
    (tmp_path / lineage.NAME).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        lineage.read(tmp_path)
    assert not verify_run(tmp_path)["ok"]


def test_a_sound_hash_and_wrong_values(tmp_path):
    good = BRANCH.model_dump(mode="json", exclude={"self"})
    for wrong in ({"parent": {**good["parent"], "step": -1}}, {"change": "x" * 5000}, {"more": 1}):
        write_manifest(tmp_path / lineage.NAME, good | wrong)
        with pytest.raises(CheckpointError, match=lineage.NAME):
            lineage.read(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "../" * 1000])
def test_a_path_that_no_system_takes(tmp_path, path):
    good = BRANCH.model_dump(mode="json", exclude={"self"})
    write_manifest(tmp_path / lineage.NAME, good | {"parent": {**good["parent"], "path": path}})
    with pytest.raises(CheckpointError, match="no path of a run"):
        lineage.read(tmp_path)
