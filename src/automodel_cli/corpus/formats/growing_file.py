"""A file that grows over several processes: what is durable of it when one is killed, the next goes on with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from automodel_cli.files import file_bytes, fsync_file, publish, temporary_of

_BUFFER_BYTES = 4 << 20
_FLUSH_BYTES = 32 << 20  # written between two flushes to the disk


class Held(Protocol):
    """Bytes that somebody else has, and puts into a file when told to."""

    @property
    def nbytes(self) -> int:
        """How many."""

    def put(self, path: Path, at: int) -> None:
        """Have them written at byte ``at`` of ``path``."""

    @property
    def settle(self) -> Callable[[], None]:
        """What waits until they are there, and all the others."""


class GrowingFile:
    """A temporary beside ``target`` that is appended to; a later process may go on with what is durable of it.

    ``synced_bytes`` of what an earlier process left count: what is beyond is cut, what is missing is zeros (a header).
    What was written is flushed to the disk in the background now and then, so that nobody waits long for ``sync``.
    """

    def __init__(self, target: Path, synced_bytes: int = 0) -> None:
        self.target, self.temporary = target, temporary_of(target)
        if synced_bytes and file_bytes(self.temporary) < synced_bytes <= file_bytes(target):
            publish(target, self.temporary)  # it got its name after the sync that counts
        descriptor = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.handle = os.fdopen(descriptor, "r+b", buffering=_BUFFER_BYTES)
        self.handle.truncate(synced_bytes)
        self.handle.seek(synced_bytes)
        self._unflushed = 0
        self._thread: ThreadPoolExecutor | None = None
        self._flush: Future[None] | None = None
        self._settle: Callable[[], None] | None = None

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        self.handle.write(data)
        self._grown(len(data))

    def take(self, held: Held) -> None:
        """Append what somebody else has; it is there after ``sync``."""
        self.handle.flush()
        at = self.handle.tell()
        held.put(self.temporary, at)
        self.handle.seek(at + held.nbytes)
        self._settle = held.settle
        self._grown(held.nbytes)

    def _grown(self, num_bytes: int) -> None:
        self._unflushed += num_bytes
        if self._unflushed < _FLUSH_BYTES or (self._flush is not None and not self._flush.done()):
            return
        self._take_flush()
        self._unflushed = 0
        self._thread = self._thread or ThreadPoolExecutor(1)
        self.handle.flush()
        self._flush = self._thread.submit(os.fsync, self.handle.fileno())

    def _take_flush(self) -> None:
        """Wait for the flush under way: of a failed one the kernel tells once."""
        flush, self._flush = self._flush, None
        if flush is not None:
            flush.result()

    def sync(self) -> None:
        """Make everything written so far durable."""
        if self._settle is not None:
            self._settle()
            self._settle = None
        self._take_flush()
        self._unflushed = 0
        fsync_file(self.handle)

    def close(self) -> None:
        """After ``sync``: no more."""
        self._end_thread()
        self.handle.close()

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def publish(self) -> None:
        """Make it durable and give it its name."""
        self.sync()
        self.close()
        publish(self.temporary, self.target)

    def abandon(self, synced_bytes: int = 0) -> None:
        """Close after an error: cut it back to ``synced_bytes``, or remove it."""
        self._end_thread()
        with contextlib.suppress(OSError):  # buffered bytes without room on the disk are not wanted
            self.handle.close()
        if synced_bytes and self.temporary.exists():
            os.truncate(self.temporary, synced_bytes)
        else:
            self.temporary.unlink(missing_ok=True)
