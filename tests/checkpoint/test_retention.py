"""Which steps stay, and how the others go."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.checkpoint.steps import damage, make_step

from automodel_cli import files
from automodel_cli.checkpoint import layout, publishing, retention


def retention_of(run: Path, *, keep_last: int, protected=(), say=None) -> retention.Retention:
    """That of a run which wrote all steps but the ``protected`` ones."""
    found = retention.Retention(run, keep_last=keep_last, keep_every=None, say=say)
    found.protected = set(protected)
    return found


def test_to_keep():
    steps = [1, 2, 3, 4, 5, 6, 10, 20]
    assert retention.to_keep(steps, keep_last=None, keep_every=None) == set(steps)
    assert retention.to_keep(steps, keep_last=2, keep_every=None) == {10, 20}
    assert retention.to_keep(steps, keep_last=1, keep_every=5) == {5, 10, 20}
    assert retention.to_keep(steps, keep_last=1, keep_every=None, pointed=[2]) == {2, 20}
    assert retention.to_keep(steps, keep_last=2, keep_every=None, protected=[10, 20]) == {5, 6, 10, 20}


def test_prune_spares_what_the_pointers_name_and_what_is_protected(tmp_path):
    for step in range(1, 8):
        make_step(tmp_path, step)
    layout.write_pointer(tmp_path, "LATEST", "step_00000005")
    layout.write_pointer(tmp_path, "BEST", "step_00000002")
    assert retention_of(tmp_path, keep_last=1, protected=[6, 7]).apply() == [1, 3, 4]
    assert layout.list_steps(tmp_path) == [2, 5, 6, 7]


def test_a_damaged_pointer_stops_deletion(tmp_path):
    for step in range(1, 4):
        make_step(tmp_path, step)
    layout.write_pointer(tmp_path, "BEST", "step_00000001")
    damage(tmp_path / "BEST")
    lines: list[str] = []
    assert retention_of(tmp_path, keep_last=1, say=lines.append).apply() == []
    assert "BEST" in lines[0]


def test_a_step_that_cannot_be_deleted_does_not_end_the_run(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        make_step(tmp_path, step)
    real = files.publish

    def refuse(temporary: Path, target: Path) -> None:
        if temporary.name == "step_00000001":
            raise OSError(errno.EACCES, "Permission denied")
        real(temporary, target)

    monkeypatch.setattr(files, "publish", refuse)
    lines: list[str] = []
    assert retention_of(tmp_path, keep_last=1, say=lines.append).apply() == [2]
    assert lines == ["step_00000001 could not be deleted: Permission denied"]


def test_a_deletion_killed_after_its_rename_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    for step in (1, 2):
        make_step(tmp_path, step)

    def killed(*arguments, **options):
        if str(arguments[0]).endswith(".deleted") and Path(arguments[0]).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        retention_of(tmp_path, keep_last=1).apply()
    monkeypatch.undo()
    assert layout.list_steps(tmp_path, complete=False) == [2]
    publishing.remove_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
