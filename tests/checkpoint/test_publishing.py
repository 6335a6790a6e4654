"""A step folder gets its name; what a killed writer left is tidied up."""

from __future__ import annotations

import errno

import pytest
from tests.checkpoint.steps import make_step

from automodel_cli.checkpoint import layout, publishing
from automodel_cli.errors import CheckpointError


def test_leftovers_go_and_brings_back_a_replaced_step(tmp_path):
    make_step(tmp_path, 1, suffix=".tmp")
    make_step(tmp_path, 2, suffix=".deleted")
    make_step(tmp_path, 3, suffix=".replaced")
    make_step(tmp_path, 4)
    make_step(tmp_path, 4, suffix=".replaced")
    (tmp_path / "notes.tmp").mkdir()
    (tmp_path / "step_00000009.tmp.txt").write_text("mine")
    assert layout.resolve(tmp_path, "3") == tmp_path / "step_00000003.replaced"
    publishing.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.tmp",
        "step_00000003",
        "step_00000004",
        "step_00000009.tmp.txt",
    ]


def test_publishing_over_an_existing_step_replaces_it(tmp_path):
    old = make_step(tmp_path, 1)
    (old / "old").touch()
    publishing.publish_step(make_step(tmp_path, 1, suffix=".tmp"), old)
    assert not (old / "old").exists() and layout.find_problem(old) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_error_while_saving_is_named_and_leaves_no_rest(tmp_path, code):
    make_step(tmp_path, 1)
    temporary = tmp_path / "step_00000002.tmp"
    temporary.mkdir()
    expected = r"could not save step_00000002[\s\S]*step_00000001 is intact"
    saving = publishing.discarding(temporary), publishing.error_context(temporary)
    with pytest.raises(CheckpointError, match=expected), saving[0], saving[1]:
        raise OSError(code, "trouble", "model/shard")
    assert not temporary.exists()
