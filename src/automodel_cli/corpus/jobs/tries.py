"""The tasks of a stage: which are left, how often each was tried, how far all of them are. Any runner keeps one.

A task that fails is tried again, because what it met may pass: a machine that died, a disk that was full. What the
input or the settings are to blame for fails at once. A task that is out of tries ends the run, and the error says
which one it was and what it met.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import astuple

from automodel_cli.corpus.build.pipeline import NoText
from automodel_cli.corpus.jobs.job import Job, TaskReport
from automodel_cli.errors import AutomodelError, ConfigError, DataError

TRIES = 4  # of one task: a machine that dies is rare, one task that meets it four times is the reason


class WorkerDied(AutomodelError):
    """The process or machine that ran a task is gone."""


class StageTasks:
    """What is left of one stage, and what its tasks have reported.

    Attributes:
        total: how many tasks the stage has.
        running: tasks that were handed out.
        done: how many are done.
    """

    def __init__(self, job: Job, stage: str, only: Sequence[int] | None = None, tries: int = TRIES) -> None:
        self._job, self.stage, self._tries = job, stage, tries
        self.total = job.tasks(stage)
        wanted = range(self.total) if only is None else only
        self._waiting = deque(task for task in wanted if not job.is_done(stage, task))
        self.done = len(wanted) - len(self._waiting)
        self.running: set[int] = set()
        self._tried: Counter[int] = Counter()  # attempts that failed, by task
        self._reports: dict[int, TaskReport] = {}

    @property
    def over(self) -> bool:
        """Whether nothing is left to run or under way."""
        return not self._waiting and not self.running

    def next(self) -> int | None:
        """A task to hand out; None where none waits. What others have done meanwhile is passed over."""
        while self._waiting:
            task = self._waiting.popleft()
            if not self._job.is_done(self.stage, task):
                self.running.add(task)
                return task
            self.done += 1
        return None

    def report(self, task: int, report: TaskReport) -> None:
        """How far a task is; the last report of a task that is done stays."""
        self._reports[task] = report

    def finished(self, task: int) -> None:
        """A task came to its end."""
        self.running.discard(task)
        self.done += 1

    def failed(self, task: int, error: BaseException) -> str:
        """A task failed: it waits for another try. What happened, in a line.

        Raises:
            AutomodelError: it is out of tries, or another would end in the same way.
        """
        self.running.discard(task)
        self._reports.pop(task, None)
        self._tried[task] += 1
        if not isinstance(error, AutomodelError) or isinstance(error, NoText):  # that is of the input, not of a task
            raise error
        tried = f", tried {self._tried[task]} times" if self._tried[task] > 1 else ""
        first = error.message.splitlines()[0] if error.message else type(error).__name__
        what = f"task {task:,} of {self.total:,} of {self.stage} failed{tried}: {first}"
        by_input = isinstance(error, (ConfigError, DataError))
        if self._tried[task] < self._tries and not by_input:
            self._waiting.append(task)
            return what
        error.message = f"{self._job.name}: {what}"
        if not by_input:
            error.hint = error.hint or "the same command goes on from there"
        raise error

    @property
    def failures(self) -> int:
        """How many attempts failed."""
        return self._tried.total()

    @property
    def sum(self) -> TaskReport:
        """All reports together."""
        columns = zip(*map(astuple, self._reports.values()), strict=True)
        return TaskReport(*map(sum, columns)) if self._reports else TaskReport()

    @property
    def share(self) -> float:
        """The part of the stage that is done, 0 to 1; a task under way counts by its text, if that is known."""
        finished = [report.text_bytes for task, report in self._reports.items() if task not in self.running]
        usual = sum(finished) / len(finished) if finished else 0
        under_way = 0.0
        if usual:
            under_way = sum(
                min(1.0, report.text_bytes / usual) for task, report in self._reports.items() if task in self.running
            )
        return min(1.0, (self.done + under_way) / max(1, self.total))
