"""200 processes of jobs die at any of their deeds, two at work at a time; the files are always those of one process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.promises import token_job_faults
from tests.promises.token_jobs import COMMANDS, check_killed, content, end, start, write_input

pytestmark = pytest.mark.torture


@pytest.mark.parametrize("command", COMMANDS)
def test_100_kills(tmp_path: Path, command: str) -> None:
    data = write_input(tmp_path)
    (tmp_path / "here").mkdir()
    token_job_faults.prepare(command, data, tmp_path / "here").run()
    _, said = end(start(command, data, tmp_path / "alone"))
    deeds, killed, runs = int(said.split("DEEDS")[1]), 0, 0
    rng = random.Random(command)
    while killed < 100:
        whole = content(tmp_path / "here")
        killed += check_killed(command, data, tmp_path / f"out {runs}", whole, deeds, rng)
        runs += 1
    print(f"{command}: {killed} kills in {runs} runs of {deeds} deeds")
