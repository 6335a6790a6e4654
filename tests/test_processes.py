"""Which rank this process is, and its processors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from automodel_cli import processes
from automodel_cli.processes import RankInfo, own_rank, without_launcher


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, RankInfo()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, RankInfo(3, 8, 1, "torchrun")),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, RankInfo(5, 16, 1, "srun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, RankInfo()),
        ({"WORLD_SIZE": "8"}, RankInfo()),
    ],
)
def test_own_rank(environ, expected):
    assert own_rank(environ) == expected


def test_a_child_without_the_launcher_is_alone():
    environ = {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "HOME": "/home/me"}
    assert without_launcher(environ) == {"HOME": "/home/me"}


def test_cores_are_the_processors_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert processes.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # a system that does not say
    assert processes.cores() == 1


def test_a_process_does_not_wait_for_the_threads_of_an_upload():
    """Python itself joins the workers of every pool before it ends."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from automodel_cli.processes import UPLOAD_THREAD, leave
begun = threading.Event()
def upload():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (begun.set(), threading.Event().wait()))
threading.Thread(target=upload, name=UPLOAD_THREAD, daemon=True).start()
begun.wait()
print("said")
leave(75)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (75, "said\n")
