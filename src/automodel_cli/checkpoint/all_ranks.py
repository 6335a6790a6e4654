"""Work that all ranks do at once, and that fails on all of them when it fails on one.

A rank that fails alone leaves the others waiting in their next collective. So each attempt ends with an exchange
of outcomes over the CPU group, and everybody raises the first failure, with its rank.

Disks are slow and time limits of process groups short. While work lasts, the ranks meet once a second at most:
a rank that is busy takes part from its main thread, so only one that hangs or is gone runs into the limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.text import first_line

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 1.0
Result = TypeVar("Result")


def all_ranks(world: World, work: Callable[[], Result], *, what: str) -> list[Result]:
    """Do ``work`` on every rank; each rank's result (JSON), in rank order. In one process: just do it.

    ``what`` names it in errors ("saving step_00001000").

    Raises:
        CheckpointError: it failed on some rank, or a rank is gone. What is no error for people is raised as it is
            on the rank that met it.
    """
    if world.size == 1:
        return [work()]
    attempt = _Attempt(work, world.device)
    try:
        attempt.meet(world)
        outcomes = world.gather(attempt.outcome)
    except RuntimeError as error:  # what the backends raise when a peer is gone or silent
        attempt.join()
        raise CheckpointError(
            f"{what} was given up: rank {world.rank} lost touch with another process ({first_line(error)})",
            "the output of the process that ended first says why; earlier checkpoints are as they were",
        ) from error
    failed = next((rank for rank, outcome in enumerate(outcomes) if "error" in outcome), None)
    if failed is not None:
        attempt.raise_failure(failed, outcomes[failed]["error"], own=failed == world.rank)
    return [outcome["result"] for outcome in outcomes]


def on_rank_zero(world: World, work: Callable[[], Result], *, what: str) -> Result:
    """Do ``work`` on rank 0 while the others wait; its result (JSON) on every rank.

    Raises:
        CheckpointError: as :func:`all_ranks`.
    """
    return all_ranks(world, lambda: work() if world.is_main else None, what=what)[0]  # type: ignore[return-value]


class _Attempt:
    """Work in a thread of its own, so that this one can meet the other ranks meanwhile."""

    def __init__(self, work: Callable[[], Any], device: torch.device) -> None:
        self._work = work
        self._device = device
        self._done = threading.Event()
        self._caught: BaseException | None = None
        self.outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":  # a new thread begins on the first GPU
                torch.cuda.set_device(self._device)
            self.outcome = {"result": self._work()}
        except BaseException as error:  # whatever it is, the other ranks must hear of it
            self._caught = error
            self.outcome = {"error": _described(error)}
        finally:
            self._done.set()

    def join(self) -> None:
        self._thread.join()

    def meet(self, world: World) -> None:
        """Return when the work of every rank is done."""
        pause = _FIRST_PAUSE_S
        self._done.wait(pause)
        while world.any(not self._done.is_set()):
            self._done.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        self.join()

    def raise_failure(self, rank: int, error: dict[str, Any], *, own: bool) -> None:
        if own and error["bug"]:
            assert self._caught is not None
            raise self._caught
        raise CheckpointError(f"{error['message']} (rank {rank})", error["hint"]) from self._caught


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, AutomodelError):
        return {"message": error.message, "hint": error.hint, "bug": False}
    return {
        "message": f"{type(error).__name__}: {error}",
        "hint": "its traceback is in the output of that rank",
        "bug": True,
    }
