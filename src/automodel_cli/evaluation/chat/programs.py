"""Programs that a model wrote, each run in a process that can do nothing but compute (``confined``).

A program has passed if its process ended with status 0 and told a secret that it got for this one run: leaving early
(``os._exit(0)``), or printing what success looks like, is no pass. What it prints is not looked at. Code that searches
its own interpreter for the secret could cheat on its score; it still could do no harm.
"""

from __future__ import annotations

import hmac
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.chat import confined
from automodel_cli.processes import cores

_HOSTILE = """
import os, socket
def refused(attempt):
    try:
        attempt()
    except PermissionError:
        return True
for attempt in (socket.socket, os.fork, lambda: open("x", "w"), lambda: os.kill(os.getppid(), 0),
                lambda: open("/proc/self/environ").read(), lambda: os.listdir("/")):
    assert refused(attempt)
"""


@dataclass(frozen=True)
class Limits:
    """Of one program. ``wall_s`` is for those that sleep; time on the processor does not depend on who else runs."""

    memory_bytes: int = 1 << 30
    cpu_s: int = 5
    wall_s: float = 30.0


def check_confinement() -> None:
    """See that programs can be confined here, by trying.

    Raises:
        ConfigError: they cannot.
    """
    if sys.platform != "linux" or not (passes("") and passes(_HOSTILE)):
        raise ConfigError(
            "generated code cannot be confined on this machine, so it is not run: that needs Linux 5.13 or later with "
            "seccomp and Landlock, on x86-64 or aarch64",
            "leave --allow-code-execution out, or evaluate on such a machine",
        )


def passes(program: str, limits: Limits = Limits()) -> bool:
    """Whether ``program`` runs to its end."""
    secret = secrets.token_hex(confined.SECRET_BYTES // 2).encode()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as told:
        given.write(secret + program.encode("utf-8", "replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-I", "-B", confined.__file__, str(limits.memory_bytes), str(limits.cpu_s)],
            stdin=given,
            stdout=told,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would be refused
            start_new_session=True,
        )
        try:
            status = process.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
            process.wait()
        told.seek(0)
        return status == 0 and hmac.compare_digest(told.read(len(secret) + 1), secret)


def which_pass(programs: Sequence[str], *, done: Callable[[int, int], None] = lambda *_: None) -> list[bool]:
    """``passes`` for each of several programs, as many at once as there are processors."""
    found = []
    with ThreadPoolExecutor(cores()) as pool:
        for passed in pool.map(passes, programs):
            found.append(passed)
            done(len(found), len(programs))
    return found
