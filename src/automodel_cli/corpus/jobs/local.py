"""A job on this machine: in this process, or in several that die with it.

A worker process is given the opener and then one task at a time on its stdin, and answers on its stdout, both in
pickles: ``("report", TaskReport)`` now and then, and at the end ``("done", None)``, ``("error", AutomodelError)`` or
``("bug", traceback)``. One that dies is replaced, and its task is tried again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from automodel_cli.corpus.build.pipeline import Progress
from automodel_cli.corpus.build.pool import worker_environment
from automodel_cli.corpus.jobs.crew import Crew, TaskEvent, run_stages
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.reports import Reports
from automodel_cli.corpus.jobs.tries import WorkerDied

_WORKER = """
import sys
from automodel_cli.processes import die_with
die_with(int(sys.argv[3]))
from automodel_cli.corpus.jobs import task_process
task_process.run(sys.argv[1:3])
"""


@dataclass(frozen=True)
class LocalRunner:
    """This machine; see :class:`~automodel_cli.corpus.jobs.job.Runner`.

    Attributes:
        num_workers: processes; 0 or 1: this one alone.
        progress: told how far the stage is.
    """

    num_workers: int
    progress: Callable[[Progress], None]
    say: Callable[[str], None]

    def run(self, job: Job, open_job: Callable[[], Job]) -> bool:
        """Do all that is missing."""
        with local_crew(job, open_job, self.num_workers) as crew:
            run_stages(job, crew, self.progress, self.say)
        return True


@contextlib.contextmanager
def local_crew(job: Job, open_job: Callable[[], Job], num_workers: int) -> Iterator[Crew]:
    """``num_workers`` processes, started when there is something to do, or this one; none is left at the end."""
    if num_workers <= 1:
        yield ThisProcess(job)
        return
    crew = Processes(open_job, num_workers)
    try:
        yield crew
    finally:
        crew.close()


class ThisProcess:
    """A crew of one, which is this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._asked: deque[tuple[str, int]] = deque()

    def room(self) -> int:
        """One at a time."""
        return 1 - len(self._asked)

    def start(self, stage: str, task: int) -> None:
        """Remember it; :meth:`events` does it."""
        self._asked.append((stage, task))

    def events(self, timeout_s: float, tell: Callable[[TaskEvent], None]) -> None:
        """Do the task, which takes as long as it takes."""
        stage, task = self._asked.popleft()
        reports = Reports(lambda report: tell(TaskEvent(task, report)))
        try:
            self._job.run_task(stage, task, reports)
        except Exception as error:
            tell(TaskEvent(task, error=error))
        else:
            tell(TaskEvent(task, reports.last, is_done=True))


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    questions: Connection
    answers: Connection
    task: int | None = None


class Processes:
    """A crew of processes on this machine."""

    def __init__(self, open_job: Callable[[], Job], num_workers: int) -> None:
        self._open_job, self._num_workers = open_job, num_workers
        self._workers: list[_Worker] = []

    def room(self) -> int:
        """One task for each process."""
        return self._num_workers - sum(worker.task is not None for worker in self._workers)

    def start(self, stage: str, task: int) -> None:
        """Give a task to a process that has none."""
        worker = next((worker for worker in self._workers if worker.task is None), None)
        if worker is None:
            worker = _start(self._open_job)
            self._workers.append(worker)
        worker.task = task
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile: its answer is the end of the pipe
            worker.questions.send((stage, task))

    def events(self, timeout_s: float, tell: Callable[[TaskEvent], None]) -> None:
        """What the processes answered."""
        by_connection = {worker.answers: worker for worker in self._workers if worker.task is not None}
        for connection in wait(list(by_connection), timeout_s):
            tell(self._answer(by_connection[connection]))  # type: ignore[index]

    def _answer(self, worker: _Worker) -> TaskEvent:
        task = worker.task
        assert task is not None
        try:
            kind, value = worker.answers.recv()
        except (EOFError, ConnectionResetError, pickle.UnpicklingError):
            self._workers.remove(worker)
            return TaskEvent(task, error=_died(worker))
        if kind == "report":
            return TaskEvent(task, value)
        worker.task = None
        if kind == "done":
            return TaskEvent(task, value, is_done=True)
        return TaskEvent(task, error=value if kind == "error" else RuntimeError(f"a worker failed:\n{value}"))

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
            _close(worker)
        self._workers.clear()


def _start(open_job: Callable[[], Job]) -> _Worker:
    question_end, ours = os.pipe()
    answers_in, answers_out = os.pipe()
    numbers = map(str, (question_end, answers_out, os.getpid()))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _WORKER, *numbers],
        pass_fds=(question_end, answers_out),
        stdin=subprocess.DEVNULL,
        env=worker_environment(),
    )
    os.close(question_end)
    os.close(answers_out)
    worker = _Worker(process, Connection(ours, readable=False), Connection(answers_in, writable=False))
    with contextlib.suppress(BrokenPipeError):
        worker.questions.send(open_job)
    return worker


def _close(worker: _Worker) -> int:
    worker.questions.close()
    worker.answers.close()
    return worker.process.wait()


def _died(worker: _Worker) -> WorkerDied:
    code = _close(worker)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return WorkerDied(
        f"its process died ({how})", "if memory ran out, use fewer processes; the same command goes on from there"
    )
