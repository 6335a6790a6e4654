"""A job whose tasks leave a file each: words of a number, then sums of pairs; with ways to fail."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.errors import AutomodelError, DataError


@dataclass(frozen=True)
class ToyJob:
    """``squares`` writes n files, ``sums`` adds them in pairs, ``finish`` adds all of it.

    Attributes:
        faults: ``task of squares -> what happens``, once for each line of the folder's file ``TASK.fault``.
    """

    folder: Path
    count: int = 6
    seconds: float = 0.0
    pid_file: bool = False

    name = "toy numbers"
    stages = ("squares", "sums")

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def tasks(self, stage: str) -> int:
        return self.count if stage == "squares" else (self.count + 1) // 2

    def path(self, stage: str, task: int) -> Path:
        return self.folder / f"{stage}.{task}"

    def is_done(self, stage: str, task: int) -> bool:
        return self.path(stage, task).exists()

    def run_task(self, stage: str, task: int, report: Report) -> None:
        self._log(f"{stage} {task}")
        self._fail(stage, task)
        if self.seconds:
            report(TaskReport(0, 0, 1))
            time.sleep(self.seconds)
        self._write(self.path(stage, task), self._value(stage, task))
        report(TaskReport(1, 10, 100))

    def _value(self, stage: str, task: int) -> int:
        if stage == "squares":
            return task * task
        pair = [self.path("squares", number) for number in (2 * task, 2 * task + 1) if number < self.count]
        return sum(int(path.read_text()) for path in pair)

    def _write(self, path: Path, value: int) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(str(value))
        temporary.replace(path)

    def _log(self, line: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(f"{line} {os.getpid()}\n")

    def ran(self) -> list[str]:
        """Stage and task of every attempt, in order."""
        path = self.folder / "log"
        return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def arm(self, task: int, *faults: str) -> None:
        """The first attempts at a task of ``squares`` end so: ``error``, ``data``, ``bug``, ``kill``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{task}.fault").write_text("\n".join(faults))

    def _fail(self, stage: str, task: int) -> None:
        path = self.folder / f"{task}.fault"
        if stage != "squares" or not path.exists():
            return
        fault, _, rest = path.read_text().partition("\n")
        path.write_text(rest) if rest else path.unlink()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "bug":
            raise KeyError("a mistake of ours")
        raise (DataError if fault == "data" else AutomodelError)(f"fault {fault} of task {task}\nsecond line")

    def finish(self) -> int:
        total = sum(int(self.path("sums", task).read_text()) for task in range(self.tasks("sums")))
        self._write(self.folder / "total", total)
        return total
