"""Worker processes whose answers come back in the order of the questions, with bounded memory.

Workers are processes of their own (no fork: the parent may have threads), told apart from training workers by
the environment they do not get. Each has two units at hand, so it never waits for the parent; at most ``window``
units are between reader and writer, and while one of them is a long document nothing more is read. A worker that dies
is an error, never a hang.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from automodel_cli.corpus.documents.inputs import announced
from automodel_cli.corpus.documents.units import Chunk, Unit
from automodel_cli.errors import AutomodelError
from automodel_cli.processes import cores, without_launcher

_PIPE_BYTES = 1 << 20  # so that a token buffer goes through in two or three turns instead of thirty
# Half a second of tiktoken's work, or a tenth of the fast engine's: a worker's start.
_WORKER_BYTES = 16 << 20
# A worker must not outlive its parent, which is settled before anything large is imported: imports take a second, in
# which the parent may be killed, and a worker at work may not look at its pipes for as long.
_WORKER = """
import sys
from automodel_cli.processes import die_with
die_with(int(sys.argv[3]))
from automodel_cli.corpus.build import worker
worker.run(sys.argv[1:3])
"""
_AT_HAND = 2  # units a worker holds: the one it works on and the next

ChunkT = TypeVar("ChunkT", bound=Chunk)
ChunkT_co = TypeVar("ChunkT_co", bound=Chunk, covariant=True)


class Task(Protocol[ChunkT_co]):
    """What a worker process is told at its start; can be pickled."""

    def open(self) -> Callable[[Unit], ChunkT_co]:
        """What turns units into chunks, made in the process that runs it."""
        ...


class Executor(Protocol):
    """What works on units, here or elsewhere: the seam for an engine that spans machines."""

    def map_ordered(
        self, task: Task[ChunkT], units: Iterator[Unit]
    ) -> contextlib.AbstractContextManager[Iterator[tuple[Unit, ChunkT]]]:
        """Each unit with its chunk, in the order of the units; leaving the context stops the work."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """This machine: ``num_workers`` processes, or this process alone where one is asked for.

    ``prefetch`` units for each worker are under way; it bounds the memory.
    """

    num_workers: int
    prefetch: int = _AT_HAND

    @contextlib.contextmanager
    def map_ordered(self, task: Task[ChunkT], units: Iterator[Unit]) -> Generator[Iterator[tuple[Unit, ChunkT]]]:
        """See :class:`Executor`."""
        if self.num_workers <= 1:
            turn = task.open()
            yield ((unit, turn(unit)) for unit in announced(units))
            return
        window = self.num_workers * self.prefetch
        with OrderedPool(task, num_workers=self.num_workers, window=window) as pool:
            yield pool.run(units)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    questions: Connection
    answers: Connection
    asked: deque[int] = field(default_factory=deque)


def likely_workers(text_bytes: Iterable[int | None]) -> int:
    """Processes to tokenize where nobody says: one per core, but no more than the text keeps busy.

    Args:
        text_bytes: limits on how much text there will be, None where not known.
    """
    known = [size for size in text_bytes if size is not None]
    return min(cores(), 1 + min(known) // _WORKER_BYTES) if known else cores()


class OrderedPool(Generic[ChunkT]):
    """``num_workers`` processes that turn units into chunks; ``run`` yields their chunks in order."""

    def __init__(self, task: Task[ChunkT], *, num_workers: int, window: int) -> None:
        self._window = max(window, num_workers)
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_workers):
                self._workers.append(_start(task))
        except BaseException:
            self.close()
            raise

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, ChunkT]]:
        """Each unit with its chunk, in order.

        Raises:
            AutomodelError: what a worker ran into, at the unit where it did; or a worker died.
        """
        under_way: deque[Unit] = deque()
        ready: dict[int, ChunkT | BaseException] = {}
        handed_out = handed_back = 0
        exhausted = False
        while True:
            while (
                not exhausted
                and len(under_way) < self._window
                and not any(unit.alone for unit in under_way)
                and (worker := self._idlest())
            ):
                unit = next(units, None)
                exhausted = unit is None
                if unit is not None:
                    worker.asked.append(handed_out)
                    handed_out += 1
                    under_way.append(unit)
                    self._ask(worker, unit)
            if not under_way:
                return
            while handed_back not in ready:
                self._collect(ready)
            answer = ready.pop(handed_back)
            if isinstance(answer, BaseException):
                raise answer
            handed_back += 1
            yield under_way.popleft(), answer

    def _idlest(self) -> _Worker | None:
        worker = min(self._workers, key=lambda w: len(w.asked))
        return worker if len(worker.asked) < _AT_HAND else None

    def _ask(self, worker: _Worker, unit: Unit) -> None:
        try:
            worker.questions.send(unit)
        except BrokenPipeError:
            raise _died(worker) from None

    def _collect(self, ready: dict[int, ChunkT | BaseException]) -> None:
        """Take in at least one answer from those who have one."""
        by_connection = {worker.answers: worker for worker in self._workers if worker.asked}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                kind, value, size = worker.answers.recv()
                if kind == "chunk":
                    value.tokens = _read_array(worker.answers.fileno(), size, value.tokens.dtype)
            except (EOFError, ConnectionResetError):
                raise _died(worker) from None
            failed = RuntimeError(f"a worker failed:\n{value}") if kind == "bug" else None
            ready[worker.asked.popleft()] = failed or value

    def close(self) -> None:
        """Stop all workers; nobody waits for what they were doing."""
        for worker in self._workers:
            worker.questions.close()
            worker.answers.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.wait()

    def __enter__(self) -> OrderedPool[ChunkT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_array(descriptor: int, size: int, dtype: np.dtype) -> np.ndarray:
    """``size`` bytes from a pipe, straight into an array."""
    array = np.empty(size // dtype.itemsize, dtype)
    view = array.view(np.uint8).data
    while view:
        done = os.readv(descriptor, [view])
        if done == 0:
            raise EOFError
        view = view[done:]
    return array


def _start(task: Task[Any]) -> _Worker:
    question_end, ours = os.pipe()
    answers_in, answers_out = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # a limit of the system; then it takes more turns
            fcntl.fcntl(answers_out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    numbers = map(str, (question_end, answers_out, os.getpid()))
    command = [sys.executable, "-P", "-c", _WORKER, *numbers]
    process = subprocess.Popen(
        command, pass_fds=(question_end, answers_out), stdin=subprocess.DEVNULL, env=worker_environment()
    )
    os.close(question_end)
    os.close(answers_out)
    worker = _Worker(process, Connection(ours, readable=False), Connection(answers_in, writable=False))
    worker.questions.send(task)
    return worker


def worker_environment() -> dict[str, str]:
    """Ours without what marks a training worker; one thread each, and the same import path."""
    env = without_launcher(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    env |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return env


def _died(worker: _Worker) -> AutomodelError:
    code = worker.process.wait()
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return AutomodelError(
        f"a worker process died ({how})",
        "if memory ran out, use fewer --num-workers or a smaller --chunk-size; the same command goes on from here",
    )
