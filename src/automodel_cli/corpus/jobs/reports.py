"""Reports of a task on their way to whoever shows progress: some a second are enough."""

from __future__ import annotations

import time

from automodel_cli.corpus.jobs.job import Report, TaskReport

_EVERY_S = 0.5


class Reports:
    """Passes reports of a task on, now and then.

    Attributes:
        last: the last one there was.
    """

    def __init__(self, send: Report, every_s: float = _EVERY_S) -> None:
        self._send, self._every_s = send, every_s
        self._sent_s = time.monotonic()
        self.last = TaskReport()

    def __call__(self, report: TaskReport) -> None:
        self.last = report
        if time.monotonic() - self._sent_s >= self._every_s:
            self._sent_s = time.monotonic()
            self._send(report)
