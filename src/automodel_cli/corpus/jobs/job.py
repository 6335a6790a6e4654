"""A preprocessing run cut into stages of independent tasks, so that any runner can run it on any machines.

1. every process opens the same *job* from the same settings; what decides the bytes is compared with the job's plan,
   which the first process wrote into the job's folder
2. stage by stage, the tasks of a stage are run in any order, anywhere, and again if a machine dies. What a task leaves
   is a function of the plan, its number and what earlier stages left; it is written under a temporary name that no
   other process uses and published whole, so two processes at the same task do no harm
3. when all stages are done, one process finishes: it publishes the manifest and removes the job's folder

A *runner* decides where tasks run and what is done about those that fail. The bytes of the output do not depend on the
runner, on how the source is cut into tasks, or on what died when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class TaskReport:
    """What a task has done so far, for progress; sums over tasks are those of the stage.

    Attributes:
        documents, tokens: written or, in stages that write none, read.
        text_bytes: bytes of input.
        bad_rows: rows without usable text.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    bad_rows: int = 0


Report = Callable[[TaskReport], None]


class Job(Protocol):
    """One run in stages. Everything but ``run_task`` and ``finish`` is cheap and leaves no trace.

    Attributes:
        name: in messages: what is made.
        stages: names of the stages, in order.
    """

    name: str
    stages: tuple[str, ...]

    def begin(self) -> None:
        """Write the plan, or compare it with the one that is there; the first process calls this before any task.

        Raises:
            ConfigError: the job's folder belongs to a run made in another way.
        """

    def tasks(self, stage: str) -> int:
        """How many tasks a stage has, numbered from 0; known once all earlier stages are done."""

    def is_done(self, stage: str, task: int) -> bool:
        """Whether what the task leaves is there, or is not needed: earlier tasks gave all that was asked for.

        A task may undo others (a fast tokenizer turned out to be wrong), so a stage is over when all of its tasks are
        done at once, which a runner asks at its end.
        """

    def run_task(self, stage: str, task: int, report: Report) -> None:
        """Do one task, whose stage's earlier stages are done. A task that is done already is left alone.

        Raises:
            AutomodelError: the task cannot be done: bad input, a full disk. Running it again may help.
        """

    def finish(self) -> Any:
        """All stages are done: make the run whole, remove what was temporary, and say what a local run says."""


class Runner(Protocol):
    """Runs all tasks of a job, here or elsewhere."""

    def run(self, job: Job, open_job: Callable[[], Job]) -> bool:
        """Run what is not done yet.

        Args:
            job: the job as this process opened it.
            open_job: opens it in another process; can be pickled.

        Returns:
            Whether all stages are done, so that the caller finishes; False where another process will, later.

        Raises:
            AutomodelError: tasks failed more often than they are retried; it names them.
        """
