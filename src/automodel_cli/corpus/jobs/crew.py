"""All stages of a job with a crew, which does tasks somewhere: hands out, tries again, says how far it is.

The crew knows where tasks run; what is to be done and what is done about failures is here, once for every crew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from automodel_cli.corpus.build.pipeline import Progress
from automodel_cli.corpus.jobs.job import Job, TaskReport
from automodel_cli.corpus.jobs.tries import StageTasks
from automodel_cli.errors import AutomodelError

OnProgress = Callable[[Progress], None]
Say = Callable[[str], None]

_EVERY_S = 0.5  # between two looks at how far all is
_ROUNDS = 5
_SAID_FAILURES = 5  # of a stage: a machine that dies takes many tasks with it


@dataclass(frozen=True)
class TaskEvent:
    """A task is further, done, or failed.

    Attributes:
        task: its number in the stage that is under way.
        report: how far it is, where that is known.
        is_done: it came to its end.
        error: what it failed of.
    """

    task: int
    report: TaskReport | None = None
    is_done: bool = False
    error: BaseException | None = None


class Crew(Protocol):
    """What does tasks, some at a time."""

    def room(self) -> int:
        """How many more tasks it takes now."""

    def start(self, stage: str, task: int) -> None:
        """Begin a task; it is over with an event that is done or failed."""

    def events(self, timeout_s: float, tell: Callable[[TaskEvent], None]) -> None:
        """Tell what happened since; waits for something to happen, but not for longer."""


def run_stages(job: Job, crew: Crew, progress: OnProgress, say: Say) -> None:
    """Do what is missing of all stages, one after the other.

    Raises:
        AutomodelError: a task failed for good; no other is started then.
    """
    for stage in job.stages:
        run_stage(job, stage, crew, progress, say)


def run_stage(
    job: Job, stage: str, crew: Crew, progress: OnProgress, say: Say, only: Sequence[int] | None = None
) -> None:
    """Do what is missing of one stage, or of ``only`` these tasks, in their order.

    Raises:
        AutomodelError: as :func:`run_stages`; or tasks end and are not done.
    """
    for _ in range(_ROUNDS):  # what is done may turn out to count for nothing (an engine that was wrong)
        tasks = StageTasks(job, stage, only)
        if tasks.over:
            return
        run_tasks(tasks, crew, progress, say)
    raise AutomodelError(
        f"{job.name}: tasks of {stage} leave nothing that this process sees",
        "all machines must see the output folder under the same path, and what others write to it",
    )


def run_tasks(tasks: StageTasks, crew: Crew, progress: OnProgress, say: Say) -> None:
    """Do the tasks of one stage.

    Raises:
        AutomodelError: one of them failed for good; no other is started then.
    """
    shown_s = 0.0

    def tell(event: TaskEvent) -> None:
        nonlocal shown_s
        _take(tasks, event, say)
        if time.monotonic() - shown_s >= _EVERY_S or tasks.over:
            shown_s = time.monotonic()
            _show(tasks, progress)

    while not tasks.over:
        for _ in range(crew.room()):
            task = tasks.next()
            if task is None:
                break
            crew.start(tasks.stage, task)
        if tasks.running:
            crew.events(_EVERY_S, tell)


def _take(tasks: StageTasks, event: TaskEvent, say: Say) -> None:
    if event.task not in tasks.running:  # a report that came late
        return
    if event.report is not None:
        tasks.report(event.task, event.report)
    if event.error is not None:
        what = tasks.failed(event.task, event.error)
        if tasks.failures <= _SAID_FAILURES:
            more = "; further ones are not told" if tasks.failures == _SAID_FAILURES else ""
            say(f"{what}: it is tried again{more}")
    elif event.is_done:
        tasks.finished(event.task)


def _show(tasks: StageTasks, progress: Callable[[Progress], None]) -> None:
    sums = tasks.sum
    counts = (sums.documents, sums.tokens, sums.text_bytes, sums.bad_rows)
    progress(Progress(tasks.stage, *counts, through=tasks.share))
