"""Trackers beside training: each in a thread of its own, behind a bounded queue.

Training puts an entry into the queues and goes on, whatever happens behind them: a package that is slow to import, a
server that does not answer, a tool that raises. A full queue takes no more; what is left out is counted and told once.
What would keep the interpreter busy has a process of its own besides (``apart``).

The first failure of a tracker is one line, and the end of it. The run's end waits for all trackers together, for a
bounded time, and leaves behind those that hang.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from automodel_cli.metrics.trackers.apart import ToldByWorker
from automodel_cli.metrics.trackers.interface import Entry, Record, Tracker
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.plain_text import without_controls
from automodel_cli.processes import TRACKER_THREAD
from automodel_cli.text import plural

CAPACITY = 10_000
"""Entries that wait for one tracker; more are left out."""
PATIENCE_S = 60.0
"""How long the end of a run waits for its trackers."""
_LOOK_EVERY_S = 0.2  # a thread that was woken for each record would take turns with training
_LONGEST_ERROR = 300
Say = Callable[[str], None]


class Background:
    """One tracker and its thread."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Tracker],
        say: Say,
        *,
        missed: Callable[[int], Iterable[Entry]] = lambda step: (),
        capacity: int = CAPACITY,
    ) -> None:
        """Begin to start the tracker.

        Args:
            name: what users call it.
            start: makes it; called in the thread.
            say: receives a line if it fails; called in the thread.
            missed: entries of the run so far past a step, which the tool does not hold.
        """
        self.name = name
        self.is_over = False  # it has failed or was left behind, and takes no more
        self._start, self._missed, self._say = start, missed, say
        self._waiting: deque[Callable[[Tracker], None]] = deque()
        self._capacity, self._ended = capacity, threading.Event()
        self._ok = False
        self._dropped = self._taken = 0
        self._thread = threading.Thread(target=self._work, name=TRACKER_THREAD, daemon=True)
        self._thread.start()

    def log(self, entry: Entry) -> None:
        """Hand over an entry, or leave it out where too many wait."""
        self._put(lambda tracker: tracker.log(entry))

    def rewind(self, step: int) -> None:
        """Hand over that the run has gone back."""
        self._put(lambda tracker: tracker.rewind(step))

    def _put(self, action: Callable[[Tracker], None]) -> None:
        if self.is_over:
            return
        self._taken += 1
        if len(self._waiting) < self._capacity:
            self._waiting.append(action)  # wakes nobody: the thread looks by itself
        else:
            self._dropped += 1

    def end(self, *, ok: bool) -> None:
        """Tell the thread that nothing more comes."""
        self._ok = ok
        self._ended.set()

    def join(self, deadline: float) -> None:
        """Wait for the thread until ``deadline`` (of ``time.monotonic``), and tell what was not sent."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            left = len(self._waiting)
            self.is_over = True
            self._say(
                f"{self.name} has not finished in time and is left behind, {plural(left, 'record')} unsent; "
                "metrics.jsonl has them all"
            )
        elif self._dropped:
            self._say(
                f"{self.name} was slower than the run: {self._dropped:,} of {plural(self._taken, 'record')} were not "
                "sent; metrics.jsonl has them all"
            )

    def _work(self) -> None:
        doing = "starting"
        try:
            tracker = self._start()
            doing = "logging"
            if tracker.last_step is not None:
                for entry in self._missed(tracker.last_step):
                    tracker.log(entry)
            while not self._sends_all(tracker):
                pass
            doing = "finishing"
            tracker.close(ok=self._ok)
        except BaseException as error:  # any failure of a tracker is one line, by design; SystemExit too
            self._give_up(doing, error)

    def _sends_all(self, tracker: Tracker) -> bool:
        """Send what has come by the next look; whether nothing more comes."""
        is_last = self._ended.wait(_LOOK_EVERY_S)
        if self._waiting:
            while self._waiting:
                self._waiting.popleft()(tracker)
            tracker.flush()
        return is_last

    def _give_up(self, doing: str, error: BaseException) -> None:
        if self.is_over:  # it was left behind, which has been said
            return
        if isinstance(error, ToldByWorker):
            self._say(str(error))
        else:
            what = without_controls(" ".join(str(redact(str(error))).split()))[:_LONGEST_ERROR]
            failed = "did not start" if doing == "starting" else f"failed while {doing}"
            self._say(
                f"{self.name} {failed} ({what or type(error).__name__}); training goes on without it, and "
                "metrics.jsonl holds every record"
            )
        self.is_over, self._dropped = True, 0


class Trackers:
    """All trackers of a run; ``MetricsLog`` sends to them as to one."""

    def __init__(self, trackers: Sequence[Background], *, patience_s: float = PATIENCE_S) -> None:
        self._trackers, self._patience_s = trackers, patience_s

    def log(self, prefix: str, record: Record) -> None:
        """Hand a record to each; takes microseconds."""
        entry = Entry(prefix, record, time.time())
        for tracker in self._trackers:
            tracker.log(entry)

    def rewind(self, step: int) -> None:
        """Tell each that the run has gone back to ``step``."""
        for tracker in self._trackers:
            tracker.rewind(step)

    def close(self, *, ok: bool = True) -> None:
        """Let all finish at once, and wait for them a bounded time. Closing twice is harmless."""
        trackers, self._trackers = self._trackers, ()
        for tracker in trackers:
            tracker.end(ok=ok)
        deadline = time.monotonic() + self._patience_s
        for tracker in trackers:
            tracker.join(deadline)
