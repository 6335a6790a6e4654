"""Processes that belong together: who this one is, the exit code of a preempted one, an end with the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: the run was saved, and the same command goes on with it."""

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankInfo:
    """This process among those that a launcher (``torchrun``, ``srun``) started together; one, without a launcher."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str | None = None


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo:
    """torchrun's RANK and WORLD_SIZE, else srun's SLURM_PROCID and a SLURM_NTASKS above one, else one process.

    Our own launcher sets torchrun's variables.
    """
    env = os.environ if environ is None else environ
    if env.get("RANK") and env.get("WORLD_SIZE"):
        return RankInfo(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK") or 0), "torchrun")
    if env.get("SLURM_PROCID") and int(env.get("SLURM_NTASKS") or 1) > 1:
        return RankInfo(
            int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID") or 0), "srun"
        )
    return RankInfo()


def without_rank(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that is a program of its own, and none of the launcher's processes."""
    return {name: value for name, value in environ.items() if name not in _RANK_VARIABLES}


def die_with(parent: int) -> None:
    """End at once when the process ``parent`` does, whatever is under way. Linux only.

    An orphan would hold its GPU, the lock of a run folder, or a processor.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)
