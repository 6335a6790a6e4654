"""The processes of one attempt on one machine: start them, pass signals on, see how each ends and which failed first.

Each is a session of its own, so that Ctrl-C in a terminal reaches only the launcher, which passes it on once. Rank 0
keeps the terminal; what the others print goes to ``rank_N.log``. A process that fails leaves ``rank_N_error.txt``:

    line 1   JSON: rank, time (seconds), message, hint
    line 2   empty
    line 3   the traceback
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from automodel_cli.processes import STARTED_VARIABLE

ERROR_FILE_VARIABLE = "AUTOMODEL_ERROR_FILE"
ATTEMPT_VARIABLE = "AUTOMODEL_ATTEMPT"  # how often the workers had been started before
LAUNCHER_VARIABLE = "AUTOMODEL_LAUNCHER_PID"
_LAUNCHED = time.time()
KILL_TIMEOUT_S = 10.0  # how long a killed process may take to disappear
_POLL_S = 0.05

# What a rank says whose peer died, or does not answer: never the cause, as long as another rank has something to say.
_PEER_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket (closed|error)|peer|nccl.*(abort|remote|unhandled)"
    r"|distbackenderror|store.*(closed|disconnected)|failed to recv",
    re.IGNORECASE,
)
_TIMED_OUT = re.compile(r"time[d ]*[- ]?out", re.IGNORECASE)


@dataclass(frozen=True)
class ProcessExit:
    """How a process ended."""

    rank: int
    pid: int
    code: int  # as subprocess gives it: negative is the signal that killed it
    at: float  # when, seconds since the epoch
    by_us: bool = False  # the launcher killed it
    message: str = ""  # message, hint: its own words, where it left any
    hint: str = ""
    traceback: Path | None = None  # file that has it, None where it left none
    log: Path | None = None  # file with what it printed, None for rank 0

    @property
    def exit_code(self) -> int:
        """The code as a shell shows it: 128 + the signal's number for a killed process."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def peer_lost(self) -> bool:
        """Whether it only says that another rank is gone."""
        return bool(_PEER_LOST.search(self.message))

    @property
    def timed_out(self) -> bool:
        """Whether it gave up waiting for another rank."""
        return bool(_TIMED_OUT.search(self.message))


def root_cause(ends: Sequence[ProcessExit]) -> ProcessExit:
    """The failure that the others follow from: not killed by us, with a reason of its own, the earliest."""
    failed = [end for end in ends if end.code != 0]
    return min(failed, key=lambda end: (end.by_us, end.peer_lost or end.timed_out, end.at))


class Worker:
    """One process and the files it leaves."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.rank = int(environment["RANK"])
        self.log_path = None if self.rank == 0 else folder / f"rank_{self.rank}.log"
        self.error_path = folder / f"rank_{self.rank}_error.txt"
        self.error_path.unlink(missing_ok=True)
        self.killed = False
        self.end: ProcessExit | None = None
        output: IO[bytes] | None = self.log_path.open("ab") if self.log_path else None
        try:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, ERROR_FILE_VARIABLE: str(self.error_path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    def poll(self) -> ProcessExit | None:
        """How it ended, once it has."""
        if self.end is None and (code := self.process.poll()) is not None:
            self.end = self._read_end(code)
        return self.end

    def send(self, number: int) -> None:
        """Send a signal to the process alone: data workers that it started are its own to end."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self, number: int) -> None:
        """End it, and with SIGKILL all that it started."""
        if self.process.poll() is None:
            self.killed = True
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def _read_end(self, code: int) -> ProcessExit:
        said = self._read_error() if code else {}
        return ProcessExit(
            rank=self.rank,
            pid=self.process.pid,
            code=code,
            at=float(said.get("time", time.time())),
            by_us=self.killed,
            message=str(said.get("message", "")),
            hint=str(said.get("hint", "")),
            traceback=self.error_path if said else None,
            log=self.log_path,
        )

    def _read_error(self) -> dict[str, Any]:
        try:
            first_line = self.error_path.read_text(encoding="utf-8", errors="replace").splitlines()[0]
            said = json.loads(first_line)
        except (OSError, ValueError, IndexError):
            return {}
        return said if isinstance(said, dict) else {}


class Workers:
    """All processes of one attempt on this machine."""

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = {LAUNCHER_VARIABLE: str(os.getpid()), STARTED_VARIABLE: str(_LAUNCHED)}
        self._workers: list[Worker] = []
        try:
            for environment in environments:
                self._workers.append(Worker(command, {**environment, **own}, folder))
        except BaseException:
            self.kill()
            raise

    def pids(self) -> dict[int, int]:
        """Process ids by local rank."""
        return {local_rank: worker.process.pid for local_rank, worker in enumerate(self._workers)}

    def ends(self) -> list[ProcessExit]:
        """How those ended that have ended."""
        return [end for worker in self._workers if (end := worker.poll()) is not None]

    def running(self) -> list[int]:
        """Ranks that have not ended."""
        return [worker.rank for worker in self._workers if worker.poll() is None]

    def failed(self) -> list[ProcessExit]:
        """How those ended that have failed."""
        return [end for end in self.ends() if end.code != 0]

    def send(self, number: int) -> None:
        """Send a signal to all that still run."""
        for worker in self._workers:
            worker.send(number)

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended, at most so long; whether they have."""
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End what still runs, the hard way. SIGABRT first lets a hung process write where it hangs."""
        for worker in self._workers:
            worker.kill(number)
        if not self.wait(KILL_TIMEOUT_S) and number != signal.SIGKILL:
            self.kill()

    def stop(self, number: int, timeout_s: float) -> None:
        """Ask all that still run to stop; whoever has not within the timeout is killed."""
        self.send(number)
        if not self.wait(timeout_s):
            self.kill()
