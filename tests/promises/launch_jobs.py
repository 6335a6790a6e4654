"""``automodel`` commands in processes of their own: start them, wait for a line, find their workers, meet on a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import nursery

LIMIT_S = 400
NO_DROPOUT = "--model.dropout=0"  # its masks depend on the rank; all else is the same on any number of them
QUICK = "last_call_timeout=12,keep_alive_interval=1,keep_alive_max_attempt=8,read_timeout=20"


class Job:
    """One ``automodel`` command in its own process, whose lines can be waited for.

    It and its workers are forks of the nursery; with ``program`` they are new Pythons.
    """

    def __init__(self, words: list[str], output: Path, *, program: tuple[str, ...] = ()) -> None:
        self.output = output
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        for name in ("RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        with output.open("w") as file:
            front = program or (sys.executable, "-m", "automodel_cli")
            self.process = (subprocess if program else nursery).Popen(
                [*front, *words], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def wait_for_more(self, text: str) -> None:
        """Until it is said once more than now."""
        deadline, before = time.monotonic() + LIMIT_S, self.said().count(text)
        while self.said().count(text) <= before:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(LIMIT_S)


class Jobs:
    """Started jobs; none of them lives longer than the ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Job] = []

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.started:
            if job.process.poll() is None:
                job.process.kill()

    def __call__(self, *words: object, program: tuple[str, ...] = ()) -> Job:
        """Start ``automodel words``."""
        output = self.folder / f"output_{len(self.started)}.txt"
        self.started.append(Job([str(word) for word in words], output, program=program))
        return self.started[-1]


def meeting_place() -> list[str]:
    """Flags for several launchers on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    return [f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1", f"--rdzv-conf={QUICK}"]


def wait_until_one_keeps_the_store(flags: list[str]) -> None:
    """The first launcher has to be the one that is not killed."""
    host, _, port = flags[0].partition("=")[2].rpartition(":")
    deadline = time.monotonic() + LIMIT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(launcher: int, rank: int) -> int:
    """Process id of that worker of a launcher that the nursery started."""
    for child in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
        if Path(f"/proc/{child}/comm").read_text() == f"rank {rank}\n":
            return child
    raise AssertionError(f"no rank {rank}")
