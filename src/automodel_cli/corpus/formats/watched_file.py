"""A file that is read for days while others may write to it: opened once, looked at again before each use.

Reading a mapping behind the end of a file that was cut off kills the process (SIGBUS), which nothing in Python can
answer. So the size is asked for before each use (some 0.3 us); between that and the copy a file would have to shrink
within microseconds. Positional reads (``mmap: false``) have no such gap. Whether it was written to without a change of
its size is looked at in every 64th use.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.errors import DataError

_USES_BETWEEN_LOOKS = 64
_RESTORE = "put the file back and resume from the last checkpoint; new data belongs under a new name"
_log = logging.getLogger(__name__)


class WatchedFile:
    """An open file whose first ``num_bytes`` must stay what they are.

    Args:
        fingerprint: of the content; asked for again where the file was written to without changing its size.

    Raises:
        DataError: the file is shorter than ``num_bytes`` already.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, num_bytes: int, *, fingerprint: Callable[[WatchedFile], str] | None = None) -> None:
        self.path, self.num_bytes = path, num_bytes
        self._fingerprint = fingerprint
        self._mapping: mmap.mmap | None = None
        self._uses = 0
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self.descriptor)
        self._size, self._written_ns = found.st_size, found.st_mtime_ns
        self._first = None if fingerprint is None else fingerprint(self)
        self._look()

    def map(self) -> np.ndarray:
        """The first ``num_bytes`` bytes as an array over a mapping, which stays as long as the array does.

        Raises:
            OSError: the file system cannot map files.
        """
        if not self.num_bytes:  # nothing cannot be mapped
            return np.empty(0, np.uint8)
        self._mapping = mmap.mmap(self.descriptor, self.num_bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(self._mapping, np.uint8)

    def read(self) -> np.ndarray:
        """The first ``num_bytes`` bytes as an array of its own; the file is closed, and ``check`` says nothing more."""
        with os.fdopen(self.descriptor, "rb", closefd=False) as handle:
            found = np.frombuffer(handle.read(self.num_bytes), np.uint8)
        self.close()
        if len(found) < self.num_bytes:
            raise DataError(f"{self.path} ended while it was read", _RESTORE)
        return found

    def check(self) -> None:
        """Refuse a file that was cut off or replaced since it was opened.

        Raises:
            DataError: it was.
        """
        if self.descriptor < 0:
            return
        self._uses += 1
        if self._mapping is None or not self._uses % _USES_BETWEEN_LOOKS or self._mapping.size() != self._size:
            self._look()

    def _look(self) -> None:
        found = os.fstat(self.descriptor)
        if found.st_size != self._size or found.st_size < self.num_bytes:
            raise DataError(
                f"{self.path} was changed while it was read: {found.st_size:,} bytes long, "
                f"expected {max(self._size, self.num_bytes):,}",
                _RESTORE,
            )
        if found.st_mtime_ns == self._written_ns:
            return
        self._written_ns = found.st_mtime_ns
        if self._fingerprint is not None and self._fingerprint(self) != self._first:
            raise DataError(f"{self.path} was overwritten while it was read: its content is another", _RESTORE)
        _log.warning("%s was written to while it is being read: its size and a sample of it are as before", self.path)

    def close(self) -> None:
        """Let go of the descriptor; arrays over the mapping stay."""
        self._mapping = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.num_bytes)


def _reopen(path: Path, num_bytes: int) -> WatchedFile:
    return WatchedFile(path, num_bytes)
