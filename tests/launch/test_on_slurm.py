"""Stages as jobs of a real Slurm, where its daemons are installed and may be started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.corpus.jobs.toy_job import ToyJob
from tests.launch.private_slurm import PrivateSlurm, missing

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}")


def test_arrays_and_the_last_job_on_a_real_slurm(tmp_path):
    with PrivateSlurm(tmp_path / "slurm") as slurm:
        env = {**slurm.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}

        def call(*words: str) -> str:
            done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        command = [sys.executable, "-m", "tests.corpus.jobs.toy_command", "toy", "6", "submit"]
        assert call(*command).splitlines() == [
            "submitted squares as job 1", "submitted sums as job 2", "submitted rest as job 3",
        ]  # fmt: skip
        call("scancel", "1_2", "2_0")  # elements that never run
        assert "did not end yet: nothing to submit; see squeue --jobs 1,2,3" in call(*command)
        slurm.wait_for_jobs()
        assert (tmp_path / "toy/total").read_text() == str(sum(n * n for n in range(6))), call("sinfo")
        roles = (tmp_path / "toy/roles").read_text().split("\n")
        assert {"squares 2", "sums 0"}.isdisjoint(roles) and {"squares 3", "sums 3", "rest "} <= set(roles)
        ran = ToyJob(tmp_path / "toy").ran()
        assert set(ran) == {f"squares {n}" for n in range(6)} | {f"sums {n}" for n in range(3)}
