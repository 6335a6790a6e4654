"""Independent commands, a few at a time: each a process, watched to its end, stopped together.

A job is a session of its own, so that Ctrl-C in a terminal reaches this process alone, which asks the jobs to save and
leave (SIGTERM) and waits; those that do not come to an end are killed. If this process is killed they die with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from automodel_cli.errors import EXIT_PREEMPTED, AutomodelError, Interrupted
from automodel_cli.launch.workers import LAUNCHER_VARIABLE
from automodel_cli.plain_text import command_line
from automodel_cli.processes import without_launcher

_POLL_S = 0.1
_STOPPED_BY_SIGNAL = (EXIT_PREEMPTED, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_LOG_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Job:
    """A command, the file that what it prints is appended to (None: it prints where this process does), and what it
    adds to the environment."""

    name: str
    command: Sequence[str]
    log: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    job: Job
    code: int  # as subprocess gives it: negative is the signal that killed it
    was_stopped: bool  # asked to by a signal, so that the same command goes on later
    log_began: int = 0  # where its own lines begin in the log, after those of earlier attempts

    @property
    def failed(self) -> bool:
        """Whether something is wrong with it."""
        return self.code != 0 and not self.was_stopped

    @property
    def message(self) -> str:
        """Its own last words: the signal that killed it, else the error in its log, else its exit code."""
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        code = f"exit code {self.code}"
        if self.job.log is None:
            return code
        with self.job.log.open("rb") as handle:
            handle.seek(max(self.log_began, self.job.log.stat().st_size - _LOG_TAIL_BYTES))
            lines = handle.read().decode("utf-8", "replace").splitlines()
        errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
        return errors[-1].strip() if errors else code


class _Running:
    """A job under way, and the slot it holds."""

    def __init__(self, job: Job, slot: int) -> None:
        self.job, self.slot = job, slot
        environment = {**without_launcher(os.environ), **job.environment, LAUNCHER_VARIABLE: str(os.getpid())}
        self.log_began = job.log.stat().st_size if job.log is not None and job.log.exists() else 0
        with _opened(job) as log:
            self.process = subprocess.Popen(
                job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        """Signal the job; with SIGKILL all that it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)


@contextlib.contextmanager
def _opened(job: Job) -> Iterator[IO[bytes] | None]:
    if job.log is None:
        yield None
        return
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"$ {command_line(job.command)}\n".encode())
        log.flush()
        yield log


def own_command(arguments: Iterable[str]) -> list[str]:
    """``automodel ARGUMENTS`` in a process of its own; nothing in the current folder can be imported by it."""
    return [sys.executable, "-P", "-m", "automodel_cli", *arguments]


def run_here(name: str, arguments: Iterable[str]) -> None:
    """Run ``automodel ARGUMENTS``, which prints where this process does, to its end.

    Raises:
        Interrupted: a signal stopped it.
        AutomodelError: it failed, and has said why.
    """
    job = Job(name, own_command(arguments))
    (end,) = Jobs().run([lambda slot: job])
    if end.was_stopped:
        error = Interrupted(f"{name}: interrupted", "the same command goes on")
        error.saved = end.code == EXIT_PREEMPTED
        raise error
    if end.failed:
        raise AutomodelError(f"{name} failed: {end.message}", "its own message is above")


class Jobs:
    """Runs jobs, ``at_once`` at a time. After a signal ``stopped`` is its number, and nothing more is started."""

    def __init__(self, *, at_once: int = 1, stop_timeout_s: float = 120.0) -> None:
        self.at_once, self.stop_timeout_s = at_once, stop_timeout_s
        self.stopped: int | None = None
        self._signals = 0
        self._deadline = float("inf")
        self._running: list[_Running] = []

    def run(
        self,
        make_jobs: Iterable[Callable[[int], Job]],
        *,
        meanwhile: Callable[[list[Job]], None] = lambda running: None,
    ) -> Iterator[JobEnd]:
        """Yield each job as it ends; none is left when this is over, however it is left.

        Args:
            make_jobs: makes a job for the slot (0 to ``at_once`` - 1) that is free; asked for when one is.
            meanwhile: called again and again with the jobs under way.
        """
        waiting = iter(make_jobs)
        with self._listening():
            try:
                while True:
                    self._start(waiting)
                    if not self._running:
                        return
                    yield from self._ended()
                    meanwhile([one.job for one in self._running])
                    self._kill_the_late()
                    time.sleep(_POLL_S if self._running else 0)
            finally:
                self._end_all()

    def _start(self, waiting: Iterator[Callable[[int], Job]]) -> None:
        while self.stopped is None and len(self._running) < self.at_once:
            make = next(waiting, None)
            if make is None:
                return
            slot = min(set(range(self.at_once)) - {one.slot for one in self._running})
            self._running.append(_Running(make(slot), slot))
            if self.stopped is not None:  # the signal came in between
                self._running[-1].send(signal.SIGTERM)

    def _ended(self) -> Iterator[JobEnd]:
        for one in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(one)
            code = one.process.returncode
            by_us = self.stopped is not None and (code in _STOPPED_BY_SIGNAL or code == -signal.SIGKILL)
            yield JobEnd(one.job, code, by_us or code == EXIT_PREEMPTED, one.log_began)

    def _kill_the_late(self) -> None:
        if time.monotonic() > self._deadline:
            self._signal_all(signal.SIGKILL)

    def _end_all(self) -> None:
        """Whoever is still there when the caller left the loop (an error of its own) is not waited for long."""
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self.stop_timeout_s
        for one in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0, deadline - time.monotonic()))
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for one in self._running:
            one.send(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped, self._signals = number, self._signals + 1
        self._deadline = min(self._deadline, time.monotonic() + self.stop_timeout_s)
        self._signal_all(signal.SIGKILL if self._signals > 2 else signal.SIGTERM)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        before: dict[int, Any] = {}
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[one] = handler = signal.signal(one, self._on_signal)
            if handler == signal.SIG_IGN:  # nohup
                signal.signal(one, handler)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
