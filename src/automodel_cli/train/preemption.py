"""A polite stop: SIGTERM, SIGINT and SIGUSR1 ask the loop to save at the current step and leave.

Handlers only set a flag; the loop looks at it between updates, and long side jobs (validation, compiling the first
step) are polled through ``until``. A second SIGINT is Ctrl-C as usual, for whoever does not want to wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

from automodel_cli.errors import ConfigError

Item = TypeVar("Item")
AnyRank = Callable[[bool], bool]  # whether a flag is set on any rank
DEFAULT_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


class Stopped(Exception):
    """A side job was given up because a stop was requested."""


class StopRequest:
    """Says whether a signal has asked the run to stop, and which one."""

    def __init__(self, signals: Iterable[str] = DEFAULT_SIGNALS) -> None:
        self._signals = [signal_number(name) for name in signals]
        self.name: str | None = None

    @property
    def requested(self) -> bool:
        """True once one of the signals has arrived."""
        return self.name is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; the handlers found before are put back after it.

        Outside the main thread (a notebook's executor, say) Python cannot install handlers; then nothing is handled.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in self._signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, any_rank: AnyRank) -> bool:
        """Whether any rank was asked to stop; all of them get the same answer, and then all are."""
        return self.heard(any_rank(self.requested))

    def heard(self, stopping: bool) -> bool:
        """Take note of what the ranks have agreed on, which is returned."""
        if stopping and not self.requested:
            self.name = "a signal on another rank"
        return stopping

    def until(self, items: Iterable[Item], any_rank: AnyRank = bool) -> Iterator[Item]:
        """The items; once a stop is requested the next one raises ``Stopped``, so that no half result is used."""
        for item in items:
            if self.agreed(any_rank):
                raise Stopped
            yield item

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def signal_number(name: str) -> signal.Signals:
    """``"SIGTERM"`` or ``"TERM"`` as a signal.

    Raises:
        ConfigError: this system has no signal of that name.
    """
    full = name if name.startswith("SIG") else f"SIG{name}"
    try:
        return signal.Signals[full]
    except KeyError:
        raise ConfigError(f"there is no signal {name!r}", f"use names such as {', '.join(DEFAULT_SIGNALS)}") from None
