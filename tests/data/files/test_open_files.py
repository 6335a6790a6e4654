"""Files opened when needed, no more of them than the process may hold."""

from __future__ import annotations

import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.data.files.open_files import OpenFiles, TokenShards, open_files_allowed


class Opener:
    """Remembers what it opened."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def __call__(self, number: int) -> str:
        self.opened.append(number)
        return f"file {number}"


def test_each_is_opened_once_and_when_asked_for() -> None:
    opener = Opener()
    files = OpenFiles(100, opener)
    assert opener.opened == []
    assert [files(3), files(5), files(3)] == ["file 3", "file 5", "file 3"]
    assert opener.opened == [3, 5]


def test_the_oldest_is_closed_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automodel_cli.data.files.open_files.open_files_allowed", lambda wanted: 16)
    opener = Opener()
    files = OpenFiles(100, opener, descriptors_each=2)  # room for 8
    for number in range(9):
        files(number)
    assert files(8) == "file 8"
    assert opener.opened == list(range(9))
    files(0)
    assert opener.opened == [*range(9), 0]


def test_threads_open_each_once() -> None:
    opener = Opener()
    files = OpenFiles(50, opener)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(files, [*range(50)] * 4))
    assert sorted(opener.opened) == list(range(50))


def test_the_soft_limit_is_raised_towards_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 728:
        pytest.skip(f"the hard limit is {hard}")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert open_files_allowed(600) == 600
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 728
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_are_read_alike_mapped_or_not_and_after_a_copy(tmp_path: Path) -> None:
    write_token_file(tmp_path / "x.bin", np.arange(50))
    files = [inspect_token_file(tmp_path / "x.bin")]
    mapped, read = TokenShards(files, "auto"), TokenShards(files, False)
    tokens = mapped.checked(0).tokens
    assert tokens is not None and read.checked(0).tokens is None
    np.testing.assert_array_equal(tokens, np.arange(50))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read)).reader(0).read(7, 5), np.arange(7, 12))
