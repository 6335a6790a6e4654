"""The process of one tracker: ``python -m automodel_cli.metrics.trackers.worker``, started by ``apart``.

Standard input: a line with the fields of ``Start``, then lines with ``log``, ``rewind`` and at last ``close``. If input
ends without it, the run was killed: what has come is sent, and the tool's run is finished as failed. Standard output:
what users should know. What the tool itself prints is thrown away.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.background import PATIENCE_S, Background
from automodel_cli.metrics.trackers.catch_up import missed_entries
from automodel_cli.metrics.trackers.comet import CometTracker
from automodel_cli.metrics.trackers.interface import Entry, Tracker
from automodel_cli.metrics.trackers.mlflow import MlflowTracker
from automodel_cli.metrics.trackers.own_files import lock_file
from automodel_cli.metrics.trackers.tensorboard import TensorboardTracker
from automodel_cli.metrics.trackers.trackio import TrackioTracker

_NICE = 5  # training comes first
_PATIENCE_S = PATIENCE_S - 5  # the run should hear of it


@dataclass(frozen=True)
class Start:
    """What a worker is told first.

    Attributes:
        tool: key of ``_TOOLS``.
        title: what users call it.
        settings: its section of the configuration.
        run_folder: of the run.
        config: the effective configuration.
        step: the update that the run goes on from.
        every_steps: of the updates, each so many is sent, and the first.
    """

    tool: str
    title: str
    settings: Mapping[str, Any]
    run_folder: str
    config: Mapping[str, Any]
    step: int
    every_steps: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_folder)


_TOOLS: Mapping[str, Callable[[Start], Tracker]] = {
    "tensorboard": lambda start: TensorboardTracker(start.folder, start.config, step=start.step),
    "mlflow": lambda start: MlflowTracker(start.settings, start.folder, start.config, step=start.step),
    "comet": lambda start: CometTracker(start.settings, start.folder, start.config),
    "trackio": lambda start: TrackioTracker(start.settings, start.folder, start.config),
}


def main() -> None:
    """Serve one run until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # are for training, which then says that it ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    answers = _only_our_own_words()
    start = Start(**json.loads(sys.stdin.buffer.readline()))
    held: list[int] = []  # the lock, as long as this process lives

    def begin() -> Tracker:
        start.folder.mkdir(parents=True, exist_ok=True)
        held.append(_alone(start))
        return _TOOLS[start.tool](start)

    tracker = Background(
        start.title,
        begin,
        lambda line: print(line, file=answers, flush=True),
        missed=lambda after: missed_entries(start.folder, after=after, until=start.step, every_steps=start.every_steps),
    )
    ok = _serve(tracker)
    tracker.end(ok=ok)
    tracker.join(time.monotonic() + _PATIENCE_S)
    answers.flush()
    os._exit(0)  # whatever the tool's own threads and exit hooks still wait for


def _serve(tracker: Background) -> bool:
    """Hand over what comes, until the run ends or the tracker has failed; whether the run ended well."""
    for line in sys.stdin.buffer:
        try:
            message = json.loads(line)
        except ValueError:  # the run was killed within a line
            return False
        if tracker.is_over:
            return False
        if "log" in message:
            prefix, record, logged = message["log"]
            tracker.log(Entry(prefix, record, logged))
        elif "rewind" in message:
            tracker.rewind(message["rewind"])
        else:
            return bool(message["close"])
    return False


def _only_our_own_words() -> Any:
    """A file that is standard output as it was; what libraries print goes nowhere from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    return answers


def _alone(start: Start) -> int:
    """Wait for the worker of an earlier process of this run, which may still send; the lock that is held."""
    descriptor = os.open(start.folder / lock_file(start.tool), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


if __name__ == "__main__":
    main()
