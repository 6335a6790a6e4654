"""What runs on a machine of a Ray cluster: one task in a process that Ray made, and the board for reports."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.jobs.job import Job, TaskReport
from automodel_cli.corpus.jobs.reports import Reports
from automodel_cli.errors import AutomodelError, ConfigError, is_panic, panic_message

_REPORT_EVERY_S = 2.0
_opened: dict[bytes, Job] = {}  # of this process; the last one only


@dataclass(frozen=True)
class Settings:
    """What a worker needs to open the job.

    Attributes:
        run: tells this run from others.
        opener: pickled, opens the job.
        folder: where the command was given; paths in the settings may start there.
        version: of this package.
    """

    run: bytes
    opener: bytes
    folder: str
    version: str


def run_task(settings: Settings, stage: str, task: int, board: Any) -> TaskReport | AutomodelError:
    """Do one task, with the job of this process; its last report, or what went wrong."""
    reports = Reports(lambda report: board.put.remote(task, report), _REPORT_EVERY_S)
    try:
        _job(settings).run_task(stage, task, reports)
    except AutomodelError as error:
        return error
    except BaseException as error:
        if not is_panic(error):
            raise
        return panic_message(error)
    return reports.last


def _job(settings: Settings) -> Job:
    job = _opened.get(settings.run)
    if job is None:
        if settings.version != __version__:
            raise ConfigError(
                f"{socket.gethostname()} has automodel-cli {__version__}, the command was given with "
                f"{settings.version}",
                "install the same version on every machine of the Ray cluster",
            )
        try:
            os.chdir(settings.folder)
        except OSError as error:
            raise ConfigError(
                f"{socket.gethostname()} has no folder {settings.folder}: {error.strerror}",
                "start the command in a folder that every machine of the Ray cluster sees under the same path",
            ) from None
        open_job: Callable[[], Job] = pickle.loads(settings.opener)
        _opened.clear()
        job = _opened[settings.run] = open_job()
    return job


class ReportBoard:
    """The newest report of each task since somebody looked."""

    def __init__(self) -> None:
        self._reports: dict[int, TaskReport] = {}

    def put(self, task: int, report: TaskReport) -> None:
        """How far ``task`` is."""
        self._reports[task] = report

    def take(self) -> dict[int, TaskReport]:
        """All there are; they are not given again."""
        reports, self._reports = self._reports, {}
        return reports
