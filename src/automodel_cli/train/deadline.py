"""The time at which a run has to be over, its last validation and checkpoint included."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

_SHARE, _MOST_S = 0.05, 60.0  # of the time there is, kept for what cannot be measured: files that are still written
_SAFETY = 1.5


class Deadline:
    """Says when to stop so that what comes last still finds time.

    Args:
        ends_at: in seconds of ``clock``; infinity: never.
        clock: seconds since 1970.
    """

    def __init__(self, ends_at: float = math.inf, *, clock: Callable[[], float] = time.time) -> None:
        self.ends_at, self._clock = ends_at, clock
        self._kept_s = min(_MOST_S, _SHARE * max(0.0, ends_at - clock()))
        self._longest: dict[str, float] = {}
        self._updates: list[float] = []  # the last three times of ``near``

    def near(self) -> bool:
        """Whether another update would not leave the time that the end takes; call it after each update."""
        now = self._clock()
        self._updates = [*self._updates[-2:], now]
        gaps = [after - before for before, after in zip(self._updates, self._updates[1:], strict=False)]
        update_s = min(gaps, default=0.0)  # one of two gaps may hold a validation
        return now + update_s + self._kept_s + _SAFETY * sum(self._longest.values()) >= self.ends_at

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Around what the end will do once more: a validation, a save."""
        started = self._clock()
        try:
            yield
        finally:
            self._longest[what] = max(self._longest.get(what, 0.0), self._clock() - started)
