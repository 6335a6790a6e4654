"""Which rank is gone or hangs, when a collective fails: the backends only say that somebody did not come.

Ranks leave signs of life in the store through which they met (not in a collective: it would hang as well). A rank
whose collective failed asks who else is there; those who do not answer within seconds are named.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError
from automodel_cli.text import first_line

ANSWER_S = 10.0
"""How long the others may take to notice the same failure; with one time limit they do so together."""

_EVERY_S = 2.0
_MARKS = ("gloo", "NCCL", "ProcessGroup", "c10d", "Connection closed", "Connection reset", "TCPStore")


class Heartbeat:
    """Signs of life of one rank, and the look at those of the others."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._store = dist.distributed_c10d._get_default_store() if world.size > 1 else None
        self._last = -_EVERY_S

    def beat(self, step: int) -> None:
        """Leave word that this rank has come to ``step``; costs nothing most of the time."""
        now = time.monotonic()
        if self._store is not None and now - self._last >= _EVERY_S:
            self._last = now
            with contextlib.suppress(Exception):  # it is only for a better message
                self._store.set(f"step/{self.world.rank}", str(step))

    @contextlib.contextmanager
    def collective_errors(self, where: Callable[[], str]) -> Iterator[None]:
        """Turn the failure of a collective inside into an error that names the ranks that are missing.

        Raises:
            AutomodelError: another rank is gone, hangs, or failed first.
        """
        try:
            yield
        except RuntimeError as error:
            if self._store is None or not _is_of_a_collective(error):
                raise
            missing = self.missing()
            text = " and ".join(self._described(rank) for rank in missing)
            found = f"{text} did not answer" if missing else "an exchange between the ranks failed"
            brief = first_line(error, 160)
            raise AutomodelError(
                f"rank {self.world.rank} gave up {where()}: {found} ({brief})",
                "that rank died or hangs: its own output says why; the run continues from its last checkpoint"
                if missing
                else "the network or the time limit (dist_env.timeout_minutes) may be the cause",
            ) from error

    def missing(self) -> list[int]:
        """Ranks that do not say within ``ANSWER_S`` that they gave up too."""
        assert self._store is not None
        try:
            self._store.set(f"gave up/{self.world.rank}", "1")
            deadline = time.monotonic() + ANSWER_S
            while True:
                missing = [rank for rank in range(self.world.size) if not self._store.check([f"gave up/{rank}"])]
                if not missing or time.monotonic() > deadline:
                    return missing
                time.sleep(0.2)
        except Exception:  # the store is kept by the launcher or by rank 0, and is gone with it
            return [0] if self.world.rank else []

    def _described(self, rank: int) -> str:
        assert self._store is not None
        with contextlib.suppress(Exception):
            if self._store.check([f"step/{rank}"]):
                self._store.set_timeout(timedelta(seconds=5))
                return f"rank {rank} (last seen at step {self._store.get(f'step/{rank}').decode()})"
        return f"rank {rank}"


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(mark in str(error) for mark in _MARKS)
