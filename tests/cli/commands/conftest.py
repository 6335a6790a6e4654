"""A current folder of each test's own, with a run in it for the commands that look whether it exists."""

import pytest


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
