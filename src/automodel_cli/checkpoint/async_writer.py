"""One save at a time, written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one piece of work in a thread of its own; what it raises comes out of :meth:`wait`, once.

    The thread is no daemon: an interpreter that ends first lets it finish.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._caught: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the work has ended with an error that nobody has been told yet."""
        return self._caught is not None

    def start(self, work: Callable[[], object]) -> None:
        """Begin; whatever ran before must have been waited for."""
        assert self._thread is None, "a save is under way"

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again by wait()
                self._caught = error

        self._thread = threading.Thread(target=run, name="save")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing runs any more; raise what the work raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._caught is not None:
            caught, self._caught = self._caught, None
            raise caught
