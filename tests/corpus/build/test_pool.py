"""The pool: order, bounds, errors at their place, no process left behind. (A killed worker: tests/promises.)"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.build.pool import OrderedPool
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import DataError


@pytest.fixture
def task(tmp_path: Path) -> EncodeTask:
    ByteTokenizer().save(tmp_path / "tokenizer")
    return EncodeTask(tmp_path / "tokenizer", "auto", ReadOptions(), "<u2", before=(256,))


def pool(task: EncodeTask, workers: int = 2, window: int = 4) -> OrderedPool:
    return OrderedPool(task, num_workers=workers, window=window)


def line_units(count: int) -> Iterator[Unit]:
    """Units of very different sizes, so that answers come out of order."""
    for k in range(count):
        yield Unit("line", "a.txt", 0, {"at": k}, payload=b"%d " % k * (1 if k % 3 else 20000))


def test_answers_come_in_order_within_the_window(task: EncodeTask) -> None:
    taken: list[int] = []

    def watched() -> Iterator[Unit]:
        for unit in line_units(30):
            taken.append(unit.cursor["at"])
            yield unit

    with pool(task) as workers:
        for number, (unit, chunk) in enumerate(workers.run(watched())):
            assert unit.cursor["at"] == number
            assert bytes(chunk.tokens[1:4].astype(np.uint8).tolist()).startswith(b"%d " % number)
            assert len(taken) <= number + 1 + 4
    assert number == 29


def test_an_error_comes_at_its_place(task: EncodeTask) -> None:
    def units() -> Iterator[Unit]:
        yield from line_units(5)
        yield Unit("line", "gone.txt", 0, {}, path="/nowhere/gone.txt", stop=5)
        yield from line_units(5)

    seen = 0
    with pool(task) as workers, pytest.raises(DataError, match=r"cannot read gone\.txt"):
        for _ in workers.run(units()):
            seen += 1
    assert seen == 5


def test_a_tokenizer_that_cannot_be_opened_is_an_error(task: EncodeTask, tmp_path: Path) -> None:
    (tmp_path / "tokenizer/automodel_tokenizer.json").write_text("{")
    with (
        pool(task) as workers,
        pytest.raises(DataError, match=r"automodel_tokenizer\.json is not valid JSON"),
    ):
        next(workers.run(line_units(3)))


def test_no_process_is_left_when_it_closes_early(task: EncodeTask) -> None:
    with pool(task, workers=3) as workers:
        next(workers.run(line_units(100)))
        processes = [worker.process for worker in workers._workers]
    assert all(process.poll() is not None for process in processes)


def test_workers_do_not_think_that_they_are_ranks(task: EncodeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    with pool(task, workers=1) as workers:
        next(workers.run(line_units(1)))
        pid = workers._workers[0].process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes() if Path("/proc").is_dir() else b""
    assert b"RANK=" not in environment and b"SLURM_PROCID=" not in environment


STUBBORN = """
import ctypes
class Task:
    def open(self):
        return lambda unit: ctypes.PyDLL(None).sleep(60)  # holds the interpreter: no thread of it runs meanwhile
"""
PARENT = """
import os, signal, sys, threading
from stubborn import Task
from automodel_cli.corpus.build.pool import OrderedPool
from automodel_cli.corpus.documents.units import Unit
pool = OrderedPool(Task(), num_workers=2, window=2)
print(*(worker.process.pid for worker in pool._workers), flush=True)
if sys.argv[1] == "working":
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    next(pool.run(Unit("rows", "x", 0, {}) for _ in range(4)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker only looks at its pipe")
@pytest.mark.parametrize("when", ["starting", "working"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, when: str) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PARENT, when]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pids = done.stdout.split()
    assert len(pids) == 2
    deadline_s = time.monotonic() + 10
    while (alive := [pid for pid in pids if _is_alive(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert alive == []


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
