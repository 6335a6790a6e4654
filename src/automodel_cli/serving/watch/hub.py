"""One thread that follows all runs, and the messages that it has for any number of pages.

Messages are numbered. A page that was away says which number it has seen and gets the later ones, or is told to read
everything anew where those are no longer kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from automodel_cli.serving.watch.runs import RunSet, WatchedRun
from automodel_cli.text import named_error

POLL_S = 0.2
_FIND_S = 2.0
_FACTS_S = 1.0
_HEARTBEAT_S = 15.0
_STOP_S = 0.5
_KEPT = 2000  # messages
_KEPT_BYTES = 8 << 20
_MOST_ROWS = 500  # of one message; pages read longer news as thinned curves


class Hub:
    """Follows the runs of a set from ``start`` to ``stop``."""

    def __init__(self, runs: RunSet, *, poll_s: float = POLL_S) -> None:
        self.runs = runs
        self._poll_s = poll_s
        self._messages: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._number = 0
        self._epoch = int(time.time() * 1000)  # numbers of another process mean nothing
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._done_at: dict[str, float] = {}

    def start(self) -> Hub:
        """Begin to follow; what there is is read in the background."""
        self.runs.find()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread, and the streams of all pages."""
        self._stopped.set()
        self._thread.join()
        self._wake()

    # ------------------------------------------------------------------------------------------ following

    def _follow(self) -> None:
        found_at = time.monotonic()
        while not self._stopped.is_set():
            more = False
            for run in self.runs:
                more |= run.problem is None and self._update_or_tell(run)
            now = time.monotonic()
            if now - found_at > _FIND_S:
                if self.runs.find():
                    self._say({"what": "runs"})
                found_at = time.monotonic() + 20 * (time.monotonic() - now)  # a slow disk is not asked all the time
            if not more:
                self._stopped.wait(self._poll_s)

    def _update_or_tell(self, run: WatchedRun) -> bool:
        """One run that cannot be followed must not end the others' news."""
        try:
            return self._update(run)
        except Exception as error:  # whatever it is, the page says so
            run.problem = named_error(error)
            self._say({"what": "runs"})
            return False

    def _update(self, run: WatchedRun) -> bool:
        was_reading, changes = run.reading, run.update()
        many = changes.more or any(added.rows - added.first > _MOST_ROWS for added in changes.added)
        if changes.restarted or (many and (not changes.more or self._due("read", run, _FACTS_S))):
            self._say({"what": "read", "run": run.name})
        elif not many:
            for added in changes.added:
                self._say({"what": "rows", **run.rows(added.part, added.first, added.rows)})
        other = self._due("facts", run, _FACTS_S) and run.update_facts()
        if changes.said or other or was_reading != run.reading:
            self._say({"what": "facts", "run": run.name})
        return changes.more

    def _due(self, what: str, run: WatchedRun, every_s: float) -> bool:
        """Whether it is time for something that is done of a run every so often."""
        now, key = time.monotonic(), f"{what} {run.name}"
        if now - self._done_at.get(key, -every_s) < every_s:
            return False
        self._done_at[key] = now
        return True

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        with self._lock:
            self._number += 1
            self._messages.append((self._number, data))
            self._bytes += len(data)
            while len(self._messages) > _KEPT or self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._messages.popleft()[1])
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting.items())
        for event, loop in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(event.set)

    # ------------------------------------------------------------------------------------------ pages

    @property
    def place(self) -> str:
        """The number of the newest message: what is read from now on is at least as new."""
        with self._lock:
            return f"{self._epoch}-{self._number}"

    def _since(self, place: str) -> tuple[list[tuple[int, bytes]], bool]:
        """Messages after ``place``, and whether all of them are still kept."""
        epoch, _, number = place.partition("-")
        with self._lock:
            if epoch != str(self._epoch) or not number.isdecimal() or len(number) > 18:
                return [], False
            seen = int(number)
            oldest = self._messages[0][0] if self._messages else self._number + 1
            newer = self._number - seen
            kept = list(self._messages)[-newer:] if newer > 0 else []
            return kept, oldest <= seen + 1 and newer >= 0

    async def stream(self, place: str, is_stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Server-sent events after ``place``, until the server stops."""
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._waiting[news] = loop
        try:
            yield b"retry: 1000\n\n"
            quiet = 0.0
            while not self._stopped.is_set() and not is_stopping():
                messages, complete = self._since(place)
                if not complete:
                    place = self.place
                    yield _event(place, b'{"what": "everything"}')
                elif messages:
                    quiet = 0.0
                    yield b"".join(_event(f"{self._epoch}-{number}", data) for number, data in messages)
                    place = f"{self._epoch}-{messages[-1][0]}"
                elif quiet >= _HEARTBEAT_S:
                    quiet = 0.0
                    yield b": still here\n\n"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _STOP_S)
                quiet += _STOP_S
                news.clear()
        finally:
            with self._lock:
                self._waiting.pop(news, None)


def _event(place: str, data: bytes) -> bytes:
    return b"id: " + place.encode() + b"\ndata: " + data + b"\n\n"
