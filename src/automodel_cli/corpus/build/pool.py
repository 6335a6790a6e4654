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

from automodel_cli.corpus.build.held_tokens import HeldTokens, PlaceOrder
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

    ``prefetch`` units for each worker are under way; it bounds the memory. Where ``holds``, the ids of a chunk stay
    with the worker (``held_tokens``); when the context is left all of them are in their files.
    """

    num_workers: int
    prefetch: int = _AT_HAND
    holds: bool = False

    @contextlib.contextmanager
    def map_ordered(self, task: Task[ChunkT], units: Iterator[Unit]) -> Generator[Iterator[tuple[Unit, ChunkT]]]:
        """See :class:`Executor`."""
        if self.num_workers <= 1:
            turn = task.open()
            yield ((unit, turn(unit)) for unit in announced(units))
            return
        window = self.num_workers * self.prefetch
        with OrderedPool(task, num_workers=self.num_workers, window=window, holds=self.holds) as pool:
            yield pool.run(units)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    questions: Connection
    answers: Connection
    asked: deque[int] = field(default_factory=deque)
    held: int = 0  # chunks of which it kept the ids
    placing: int = 0  # orders to place ids that it has not answered


def likely_workers(text_bytes: Iterable[int | None]) -> int:
    """Processes to tokenize where nobody says: one per core, but no more than the text keeps busy.

    Args:
        text_bytes: limits on how much text there will be, None where not known.
    """
    known = [size for size in text_bytes if size is not None]
    return min(cores(), 1 + min(known) // _WORKER_BYTES) if known else cores()


class OrderedPool(Generic[ChunkT]):
    """``num_workers`` processes that turn units into chunks; ``run`` yields their chunks in order."""

    def __init__(self, task: Task[ChunkT], *, num_workers: int, window: int, holds: bool = False) -> None:
        self._window = max(window, num_workers)
        self._workers: list[_Worker] = []
        self._ready: dict[int, ChunkT | BaseException] = {}
        self._orders: dict[int, tuple[_Worker, PlaceOrder]] = {}  # by unit, of chunks that wait for their places
        try:
            for _ in range(num_workers):
                self._workers.append(_start(task, holds))
        except BaseException:
            self.close()
            raise

    def run(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, ChunkT]]:
        """Each unit with its chunk, in order.

        Raises:
            AutomodelError: what a worker ran into, at the unit where it did; or a worker died.
        """
        under_way: deque[Unit] = deque()
        ready = self._ready
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
            self._send_order(handed_back - 1, last=True)

    def _idlest(self) -> _Worker | None:
        worker = min(self._workers, key=lambda w: len(w.asked))
        return worker if len(worker.asked) < _AT_HAND else None

    def _ask(self, worker: _Worker, question: Unit | PlaceOrder) -> None:
        try:
            worker.questions.send(question)
        except BrokenPipeError:
            raise _died(worker) from None

    def _collect(self, ready: dict[int, ChunkT | BaseException]) -> None:
        """Take in at least one answer from those who have one."""
        by_connection = {worker.answers: worker for worker in self._workers if worker.asked or worker.placing}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                kind, value, size = worker.answers.recv()
                if kind == "chunk":
                    value.tokens = _read_array(worker.answers.fileno(), size, value.tokens.dtype)
            except (EOFError, ConnectionResetError):
                raise _died(worker) from None
            if kind == "placed":
                worker.placing -= 1
                if value is not None:
                    raise value
                continue
            if kind == "held":
                order = PlaceOrder(worker.held)
                self._orders[worker.asked[0]] = worker, order
                value.tokens = HeldTokens(order, 0, size, value.tokens.dtype, self.settle)
                worker.held += 1
            failed = RuntimeError(f"a worker failed:\n{value}") if kind == "bug" else None
            ready[worker.asked.popleft()] = failed or value

    def _send_order(self, unit: int, *, last: bool) -> None:
        """Tell a worker what became known about the places of a chunk's ids."""
        if unit not in self._orders:
            return
        worker, order = self._orders[unit]
        if last or order.placements:
            worker.placing += bool(order.placements)
            self._ask(worker, PlaceOrder(order.number, order.placements, last))
        order.placements = []
        if last:
            del self._orders[unit]

    def settle(self) -> None:
        """Wait until all ids whose places are known are there.

        Raises:
            AutomodelError: the disk is full, or a worker died.
        """
        for unit in sorted(self._orders):
            self._send_order(unit, last=False)
        while any(worker.placing for worker in self._workers):
            self._collect(self._ready)

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

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
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


def _start(task: Task[Any], holds: bool) -> _Worker:
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
    worker.questions.send((task, holds))
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
