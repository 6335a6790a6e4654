"""This process among others: which rank a launcher made it, its processors, and what it owes its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")
"""What makes a process think that it is one of several."""
STARTED_VARIABLE = "AUTOMODEL_STARTED"
"""When the launcher of this process was started, in seconds since 1970."""

UPLOAD_THREAD, TRACKER_THREAD = "upload", "tracker"
"""Names of threads that a process does not wait for when it ends."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankInfo:
    """Which of how many processes this is, as a launcher (``torchrun`` or ``srun``; None: there is none) said it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str | None = None


def own_rank(environ: Mapping[str, str] | None = None) -> RankInfo:
    """torchrun's RANK and WORLD_SIZE, else srun's SLURM_PROCID and a SLURM_NTASKS above one, else one process."""
    env = os.environ if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return RankInfo(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")), "torchrun")
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        local = int(env.get("SLURM_LOCALID", "0"))
        return RankInfo(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), local, "srun")
    return RankInfo()


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that is to be a process of its own, whatever started this one."""
    return {name: value for name, value in environ.items() if name not in (*LAUNCHER_VARIABLES, STARTED_VARIABLE)}


def command_started() -> float:
    """When the command began that this process is a part of, in seconds since 1970: its launcher's start, else now."""
    return float(os.environ.get(STARTED_VARIABLE) or time.time())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with(parent: int) -> None:
    """End at once when the process ``parent`` does, whatever is under way. Linux only.

    An orphan would hold its GPU, the lock of a run folder, or a processor.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)


def leave(code: int) -> NoReturn:
    """End this process; at once where an upload or a tracker goes on: Python waits for their libraries' threads."""
    if any(thread.name in (UPLOAD_THREAD, TRACKER_THREAD) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
