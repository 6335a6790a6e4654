"""Copies of saved steps to elsewhere: in a thread, one at a time; meanwhile one more waits, the newest.

A step is put aside before, by hard links (copies where the disk has none), so that retention may delete it meanwhile.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from automodel_cli.processes import UPLOAD_THREAD

_Job = TypeVar("_Job")


class NewestFirst(Generic[_Job]):
    """A thread that does ``work`` with one job after another."""

    def __init__(self, work: Callable[[_Job], None]) -> None:
        self._do = work
        self._lock = threading.Lock()
        self._waiting: _Job | None = None  # the newest, that the thread has not taken yet
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        with self._lock:
            return self._thread is not None and self._thread.is_alive()

    def hand_over(self, job: _Job) -> _Job | None:
        """Let the thread take ``job``, and return what waited for it until now."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # A daemon: a process that was told to stop does not wait for a network.
                self._thread = threading.Thread(target=self._work, name=UPLOAD_THREAD, daemon=True)
                self._thread.start()
            passed, self._waiting = self._waiting, job
        return passed

    def _work(self) -> None:
        while True:
            with self._lock:
                job, self._waiting = self._waiting, None
                if job is None:
                    self._thread = None
                    return
            self._do(job)


def link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where the disk has no hard links.

    Raises:
        OSError: it is not there, or there is no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
