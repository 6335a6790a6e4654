"""Processes of a job die at any instant, others go on with what they left; the files are those of one process.

A few instants of each command; ``make torture`` has 200 kills.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.promises import token_job_faults
from tests.promises.token_jobs import COMMANDS, check_killed, content, end, start, write_input


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_deed(tmp_path: Path, command: str) -> None:
    data = write_input(tmp_path)
    (tmp_path / "here").mkdir()
    token_job_faults.prepare(command, data, tmp_path / "here").run()
    code, said = end(start(command, data, tmp_path / "alone"))
    assert code == 0, said
    assert content(tmp_path / "alone") == content(tmp_path / "here")
    deeds = int(said.split("DEEDS")[1])
    assert deeds > 100
    killed = check_killed(command, data, tmp_path / "out", content(tmp_path / "here"), deeds, random.Random(command))
    assert killed >= 3
