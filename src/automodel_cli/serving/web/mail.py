"""From the engine's thread to coroutines: many pieces, few wake-ups of the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from automodel_cli.serving.engine import Piece, Sink


class Postman:
    """Takes pieces on the engine's thread and hands them out on the loop's: once for all that came meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Inbox] = deque()
        self._called = False

    def announce(self, inbox: Inbox) -> None:
        """An inbox has something; from any thread."""
        self._ready.append(inbox)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._called = False  # first, so that whoever comes while this runs calls again
        while self._ready:
            self._ready.popleft().filled.set()


class Inbox:
    """Pieces of the choices of one answer.

    Args:
        whole: wake the reader only at the ends of choices.
    """

    def __init__(self, postman: Postman, *, whole: bool) -> None:
        self.filled = asyncio.Event()
        self._postman, self._whole = postman, whole
        self._pieces: deque[tuple[int, Piece]] = deque()

    def sink(self, choice: int) -> Sink:
        """Where the engine puts the pieces of one choice."""

        def put(piece: Piece) -> None:
            self._pieces.append((choice, piece))
            if piece.finish is not None or not self._whole:
                self._postman.announce(self)

        return put

    async def next(self) -> list[tuple[int, Piece]]:
        """What has come, once something has."""
        await self.filled.wait()
        self.filled.clear()
        return [self._pieces.popleft() for _ in range(len(self._pieces))]
