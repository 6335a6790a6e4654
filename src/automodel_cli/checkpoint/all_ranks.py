"""Work that all ranks do at once, and that fails on all of them when it fails on one.

A rank that fails alone leaves the others waiting in their next collective. So each attempt ends with an exchange
of outcomes over the CPU group, and everybody raises the first failure, with its rank.

Disks are slow and time limits of process groups short. While work lasts, the ranks meet once a second at most:
a rank that is busy takes part from its main thread, so only one that hangs or is gone runs into the limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
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
    attempt = in_thread(lambda: _on_device(world.device, work), name="checkpoint")
    try:
        _meet(world, attempt)
        outcomes = world.gather(_outcome(attempt))
    except RuntimeError as error:  # what the backends raise when a peer is gone or silent
        wait([attempt])
        raise CheckpointError(
            f"{what} was given up: rank {world.rank} lost touch with another process ({first_line(error)})",
            "the output of the process that ended first says why; earlier checkpoints are as they were",
        ) from error
    failed = next((rank for rank, outcome in enumerate(outcomes) if "error" in outcome), None)
    if failed is not None:
        reason, own = outcomes[failed]["error"], attempt.exception()
        if own is not None and failed == world.rank and reason["bug"]:
            raise own
        raise CheckpointError(f"{reason['message']} (rank {failed})", reason["hint"]) from own
    return [outcome["result"] for outcome in outcomes]


def on_rank_zero(world: World, work: Callable[[], Result], *, what: str) -> Result:
    """Do ``work`` on rank 0 while the others wait; its result (JSON) on every rank.

    Raises:
        CheckpointError: as :func:`all_ranks`.
    """
    return all_ranks(world, lambda: work() if world.is_main else None, what=what)[0]  # type: ignore[return-value]


def in_thread(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """``work`` begun in a thread of its own: no daemon, nor of a pool, so an interpreter that ends lets it finish."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, who asks for the result must hear of it
            future.set_exception(error)

    threading.Thread(target=run, name=name).start()
    return future


def _on_device(device: torch.device, work: Callable[[], Result]) -> Result:
    if device.type == "cuda":  # a new thread begins on the first GPU
        torch.cuda.set_device(device)
    return work()


def _meet(world: World, attempt: Future[Any]) -> None:
    """Return when the work of every rank is done."""
    pause = _FIRST_PAUSE_S
    while world.any(bool(wait([attempt], pause).not_done)):
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _outcome(attempt: Future[Any]) -> dict[str, Any]:
    error = attempt.exception()
    return {"result": attempt.result()} if error is None else {"error": _described(error)}


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, AutomodelError):
        return {"message": error.message, "hint": error.hint, "bug": False}
    return {
        "message": f"{type(error).__name__}: {error}",
        "hint": "its traceback is in the output of that rank",
        "bug": True,
    }
