"""A tracker in a process of its own: whatever it does, training only writes a line for each record.

``worker`` is the other end. Lines of JSON go to it; what it has to say comes back, as text, when it ends. It outlives a
run that is killed by as long as it takes to send what it has received.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, Forgetful
from automodel_cli.processes import without_launcher

WORKER = "automodel_cli.metrics.trackers.worker"


class ToldByWorker(Exception):
    """What a worker said before it ended: whole sentences for the user."""


class Apart(Forgetful):
    """The end of a worker that training holds."""

    def __init__(self, tool: str, title: str, arguments: Mapping[str, Any]) -> None:
        """Start a worker for ``tool``, named ``title``; ``arguments`` are those of ``worker.Start``."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],  # -P: nothing in this folder is a package
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=without_launcher(os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C and a scheduler's warning are for training, which then says it is over
        )
        self._send({"tool": tool, "title": title, **arguments})

    def log(self, entry: Entry) -> None:
        """Send an entry."""
        self._send({"log": [entry.prefix, dict(entry.record), entry.time]})

    def rewind(self, step: int) -> None:
        """Send that the run has gone back."""
        self._send({"rewind": step})

    def close(self, *, ok: bool) -> None:
        """Tell the worker to finish, and wait until it has."""
        self._send({"close": ok})
        self._hear()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._hear()
            raise RuntimeError("its process has ended") from None

    def _hear(self) -> None:
        """Take what the worker says until it ends.

        Raises:
            ToldByWorker: it had something to say.
            RuntimeError: it had not, and was killed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        said = self._process.stdout.read(1 << 16).decode(errors="replace").strip()
        code = self._process.wait()
        if said:
            raise ToldByWorker(said)
        if code:
            raise RuntimeError(f"its process has ended with exit code {code}")
