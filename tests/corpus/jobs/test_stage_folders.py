"""Folders of tasks: whole or not there, whoever was quicker."""

import re
from pathlib import Path

import pytest

from automodel_cli.corpus.jobs.stage_folders import TASK_FOLDER, StageFolders


def test_a_folder_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    folders = StageFolders(tmp_path)
    with folders.making("join", 3) as own:
        (own / "rows").write_bytes(b"abc")
        assert not folders.is_done("join", 3)
        assert re.fullmatch(TASK_FOLDER, own.relative_to(tmp_path).as_posix())
    assert folders.is_done("join", 3) and not folders.is_done("join", 2)
    assert (folders.path("join", 3) / "rows").read_bytes() == b"abc"
    assert re.fullmatch(TASK_FOLDER, folders.path("join", 3).relative_to(tmp_path).as_posix())
    assert re.fullmatch(TASK_FOLDER, folders.path("join", 123456).relative_to(tmp_path).as_posix())


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    folders = StageFolders(tmp_path)
    with pytest.raises(ValueError, match="no"), folders.making("join", 3) as own:
        (own / "rows").write_bytes(b"abc")
        raise ValueError("no")
    assert not folders.is_done("join", 3) and list((tmp_path / "join").iterdir()) == []


def test_of_two_at_the_same_task_the_first_one_stays(tmp_path: Path) -> None:
    folders = StageFolders(tmp_path)
    with folders.making("join", 3) as slow:
        (slow / "rows").write_bytes(b"slow")
        with folders.making("join", 3) as quick:
            (quick / "rows").write_bytes(b"quick")
    assert (folders.path("join", 3) / "rows").read_bytes() == b"quick"
    assert [path.name for path in (tmp_path / "join").iterdir()] == ["00003"]
