"""The launcher with real training: the same numbers in every form, stopped and resumed, killed and started again.

One long undisturbed run is what all others must equal. The counts are in tests/torture/test_launch_faults.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 40
SECTIONS = {
    "step_scheduler": {"max_steps": STEPS, "ckpt_every_steps": 10, "val_every_steps": None},
    "precision": "fp32",
}
QUICK = "last_call_timeout=20,keep_alive_interval=1,keep_alive_max_attempt=8,read_timeout=20"
LIMIT_S = 400
NO_DROPOUT = "--model.dropout=0"  # its masks depend on the rank; all else is the same on any number of them


class Job:
    """One ``automodel`` command in its own process, whose lines can be waited for."""

    def __init__(self, words: list[str], output: Path, *, program: tuple[str, ...] = ()) -> None:
        self.output = output
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        for name in ("RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        with output.open("w") as file:
            front = program or (sys.executable, "-m", "automodel_cli")
            self.process = subprocess.Popen(
                [*front, *words], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(LIMIT_S)


@pytest.fixture
def jobs(tmp_path):
    started: list[Job] = []

    def start(words: list[str], **more) -> Job:
        started.append(Job([str(word) for word in words], tmp_path / f"output_{len(started)}.txt", **more))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.process.kill()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_tokens):
    """The undisturbed run on two processes, started by stock torchrun."""
    from tests.conftest import TinyTraining

    run = TinyTraining(tmp_path_factory.mktemp("two_ranks"), tiny_tokens)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "automodel_cli")
    job = Job(
        ["pretrain", "llm", "-c", str(run.config(**SECTIONS)), NO_DROPOUT],
        run.folder / "output.txt",
        program=(sys.executable, *torchrun),
    )
    assert job.end() == 0, job.said()
    assert job.said().count("pretrain llm\n") == 1, "only rank 0 speaks"
    return run


def test_stopped_by_a_signal_and_resumed_equals_undisturbed(tiny_training, two_ranks, jobs):
    """SIGUSR1 to the launcher at some step, exit code 75, the same command again."""
    command = [
        "--nproc-per-node",
        2,
        "automodel",
        "pretrain",
        "llm",
        "-c",
        tiny_training.config(**SECTIONS),
        NO_DROPOUT,
    ]
    first = jobs(command)
    first.wait_for("step 3 |")
    first.process.send_signal(signal.SIGUSR1)
    assert first.end() == 75, first.said()
    assert "(SIGUSR1 received)" in first.said()
    again = jobs(command)
    assert again.end() == 0, again.said()
    assert tiny_training.losses() == two_ranks.losses()


def test_a_killed_rank_is_named_and_the_run_goes_on(tiny_training, two_ranks, jobs):
    """SIGKILL of one worker after a checkpoint: started again from it, once, and with the same numbers."""
    config = tiny_training.config(**SECTIONS)
    job = jobs([config, "--nproc-per-node=2", "--max-restarts=1", NO_DROPOUT])
    job.wait_for("step_00000010 in")
    victim = next(pid for pid in children(job.process.pid) if environment(pid).get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    assert job.end() == 0, job.said()
    assert "rank 1: killed by SIGKILL; all processes start again (1 of 1)" in job.said()
    assert tiny_training.losses() == two_ranks.losses()
    assert "Traceback" not in job.said()


def test_a_machine_is_lost_and_the_run_goes_on_with_the_other(tiny_training, two_ranks, jobs):
    """Two launchers with ``--nnodes 1:2``, one of them killed: the other resumes on one process."""
    config = tiny_training.config(**SECTIONS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--nnodes=1:2", f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1", f"--rdzv-conf={QUICK}"]
    stays = jobs([config, NO_DROPOUT, *flags])
    wait_until_it_listens(endpoint)  # it keeps the store
    lost = jobs([config, NO_DROPOUT, *flags])
    stays.wait_for("step_00000010 in")
    lost.process.kill()
    assert stays.end() == 0, stays.said()
    assert "all processes start again (1 of 3)" in stays.said()
    assert "step 40 |" in stays.said()
    ours, theirs = tiny_training.losses(), two_ranks.losses()
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[step] - theirs[step]) < 1e-5 for step in theirs)


def wait_until_it_listens(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    deadline = time.monotonic() + LIMIT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return {name: value for name, _, value in (item.partition("=") for item in text.split("\0"))}
