"""A ``metrics.jsonl`` followed while somebody writes it: each call gives the records that have come since the last.

Whatever a run does to its file is told apart by the bytes that were read last, and by the file's identity:

    appended to                             the new lines, each once it has its newline
    a torn last line cut off by a resume    it had never been read
    replaced (``rewind``, ``--fresh``)      everything again from the start, with ``restarted``
    gone                                    ``restarted``, and nothing

So what a reader has is always what the file holds, with no step twice and none missing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.json_files import open_to_read
from automodel_cli.metrics.log_file import MAX_LINE_BYTES, decode_line, is_sound

BLOCK_BYTES = 1 << 20
_TAIL_BYTES = 96  # a line ends with its hash, so this tells one file from another


@dataclass(frozen=True)
class News:
    """What has come.

    Attributes:
        restarted: forget everything given so far: the file is another one now.
        more: there was more than one block of it: ask again at once.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    restarted: bool = False
    more: bool = False


class Follower:
    """Reads one file on and on; a link that leads out of the folder ``inside`` counts as no file.

    Attributes:
        skipped_lines: lines so far that are no record, or not the one that was written.
    """

    def __init__(self, path: Path, *, inside: Path | None = None, block_bytes: int = BLOCK_BYTES) -> None:
        self._path, self._inside, self._block_bytes = path, inside, block_bytes
        self._seen: tuple[int, ...] | None = None  # the file as it was when there was nothing more to read
        self._forget()

    def _forget(self) -> None:
        self._offset, self._tail = 0, b""
        self._identity: tuple[int, int] | None = None
        self._inside_long_line = False
        self.skipped_lines = 0

    def read(self) -> News:
        """Up to a block of new lines; nothing where there are none, or no file."""
        try:
            now = self._path.stat()
            state = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
            if state == self._seen:
                return News()
            if self._leads_out():
                return self._gone()
            with open_to_read(self._path, buffering=0) as handle:
                return self._read(handle.fileno(), state)
        except OSError:
            return self._gone()

    def _leads_out(self) -> bool:
        if self._inside is None or not self._path.is_symlink():
            return False
        return not self._path.resolve().is_relative_to(self._inside.resolve())

    def _gone(self) -> News:
        had_some, self._seen = self._identity is not None, None
        self._forget()
        return News(restarted=had_some)

    def _read(self, descriptor: int, state: tuple[int, ...]) -> News:
        now = os.fstat(descriptor)
        identity = (now.st_dev, now.st_ino)
        restarted = self._identity is not None and (identity != self._identity or not self._goes_on(descriptor))
        if restarted:
            self._forget()
        self._identity = identity
        records, more = self._block(descriptor)
        self._seen = None if more else state
        return News(records, restarted, more)

    def _goes_on(self, descriptor: int) -> bool:
        """Whether what was read last still stands where it stood."""
        return os.pread(descriptor, len(self._tail), self._offset - len(self._tail)) == self._tail

    def _block(self, descriptor: int) -> tuple[list[dict[str, Any]], bool]:
        size = self._block_bytes
        data = os.pread(descriptor, size, self._offset)
        while len(data) == size <= MAX_LINE_BYTES and b"\n" not in data:
            size *= 2
            data = os.pread(descriptor, size, self._offset)
        more = len(data) == size
        end = data.rfind(b"\n") + 1
        if not end and len(data) <= MAX_LINE_BYTES:
            return [], False  # the line's end is still to come
        self._advance(data[: end or len(data)])
        lines = data[:end].split(b"\n")[:-1]
        if self._inside_long_line:
            lines = lines[1:]
        self._inside_long_line = not end
        self.skipped_lines += not end
        return self._decoded(lines), more

    def _advance(self, read: bytes) -> None:
        self._offset += len(read)
        self._tail = (self._tail + read)[-_TAIL_BYTES:] if len(read) < _TAIL_BYTES else read[-_TAIL_BYTES:]

    def _decoded(self, lines: list[bytes]) -> list[dict[str, Any]]:
        records = []
        for line in lines:
            record = decode_line(line) if line and is_sound(line) is not False else None
            if record is not None:
                records.append(record)
            self.skipped_lines += record is None and bool(line.strip())
        return records
