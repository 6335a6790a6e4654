"""Patterns: literal names first, links followed, loops and two ways to one folder entered once."""

import glob
import os
from pathlib import Path

import pytest

from automodel_cli.corpus.documents.globbing import expand, is_pattern, walk


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.txt",
        "a/*",
        "*/x.txt",
        "**",
        "**/*.txt",
        "a/**/x.*",
        "[ab]/x.txt",
        "?/*",
        ".*",
        "nothing/*",
        "a/x.txt",
    ],
)
def test_agrees_with_glob(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.txt", "a/b/x.txt", "b/x.txt", "b/y.md", "z.txt", ".hidden/x.txt", ".h.txt", "a/.i.txt")
    monkeypatch.chdir(tmp_path)
    theirs = {os.path.normpath(name) for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207
    ours = {os.path.normpath(path) for path in expand(pattern)}
    assert {name for name in ours if Path(name).is_file()} == {name for name in theirs if Path(name).is_file()}
    assert [str(path) for path in expand(f"{tmp_path}/{pattern}")] == sorted(str(tmp_path / n) for n in ours)


def test_a_name_that_is_there_is_meant_literally(tmp_path: Path) -> None:
    touch(tmp_path, "data [v1] 100%/a*[0].bin", "data [v1] 100%/b.bin", "data v/c.bin")
    folder = tmp_path / "data [v1] 100%"
    assert expand(f"{folder}/*.bin") == [folder / "a*[0].bin", folder / "b.bin"]
    assert expand(f"{folder}/a*[0].bin") == [folder / "a*[0].bin"]
    assert expand(f"{tmp_path}/data [v]/*.bin") == [tmp_path / "data v/c.bin"]
    assert expand(f"{tmp_path}/data[ v1]/*") == []
    assert expand(f"{tmp_path}/data ?/*") == [tmp_path / "data v/c.bin"]
    assert not is_pattern(str(folder)) and is_pattern(f"{folder}/*.bin")


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/v1/a.txt", "outside/b.txt", "outside/deep/c.txt")
    start = tmp_path / "in"
    for name, target in (
        ("again", "v1"),
        ("loop", "."),
        ("up", ".."),
        ("out", "../outside"),
        ("out2", "../outside"),
    ):
        (start / name).symlink_to(target)
    (tmp_path / "outside/back").symlink_to("../in")
    (start / "broken").symlink_to("nowhere")
    tree = walk(start)
    assert [str(path.relative_to(start)) for path in tree.folders[:2]] == [".", "v1"]
    names = sorted(path.name for path in expand(f"{start}/**/*.txt"))
    assert names == ["a.txt", "b.txt", "c.txt"]
    assert start / "again" in tree.links_to_known and start / "loop" in tree.links_to_known
    assert start / "broken" in expand(f"{start}/*")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xe9t\xe9.txt")).write_text("x")
    assert [os.fsencode(path.name) for path in expand(f"{tmp_path}/*.txt")] == [b"\xe9t\xe9.txt"]
