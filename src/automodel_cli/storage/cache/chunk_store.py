"""Chunks of remote files on the local disk, shared by all processes of a machine.

    FOLDER/chunks/<object>/<number>   bytes of the chunk, then 8 bytes: their XXH3 (64 bit, big-endian)
    FOLDER/locks/<two hex digits>     ``flock``: who holds it downloads, so that others find the chunk afterwards

``<object>`` is a hash of URL, size, etag and chunk size, so a changed object has other chunks. A chunk appears by a
rename and never changes; a damaged one is removed, and is then missing. The least recently used go when the sum is
above the limit: a file's modification time says when it was opened last. The cache can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import xxhash

from automodel_cli.storage.cache.settings import CacheSettings

_DIGEST_BYTES = 8
_PATIENCE_S = 20.0  # for another process that downloads the same chunk; then it is downloaded twice
_LEAST_FREE_BYTES = 1 << 30  # of the disk, left to checkpoints and everybody else
_log = logging.getLogger(__name__)
Chunk = tuple[str, int]  # hash of the object, number of the chunk


class ChunkStore:
    """The chunks of one cache folder."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._chunks, self._locks = settings.folder / "chunks", settings.folder / "locks"
        self._slack = max(settings.max_bytes // 16, settings.chunk_bytes)  # what is made room for at a time
        self._sound: set[tuple[Chunk, int]] = set()  # chunks whose hash was right, and their inodes
        self._unseen = self._slack  # bytes added since the folder was last looked through
        self._lock = threading.Lock()
        self._warned = False

    def path(self, chunk: Chunk) -> Path:
        """Where a chunk is, if it is."""
        return self._chunks / chunk[0] / f"{chunk[1]:08d}"

    def open(self, chunk: Chunk, length: int) -> int | None:
        """A descriptor of the chunk's file, whose first ``length`` bytes are the chunk; None where there is none.

        Its hash is checked when this process opens it first.
        """
        path = self.path(chunk)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        seen = (chunk, os.fstat(descriptor).st_ino)
        if seen not in self._sound:
            if not _is_sound(descriptor, length):
                os.close(descriptor)
                path.unlink(missing_ok=True)
                _log.warning("%s was damaged; the chunk is fetched again", path)
                return None
            self._sound.add(seen)
        with contextlib.suppress(OSError):  # somebody else's file
            os.utime(descriptor)
        return descriptor

    def has(self, chunk: Chunk) -> bool:
        """Whether there is a file of this chunk, sound or not."""
        return self.path(chunk).exists()

    def add(self, chunk: Chunk, data: bytes) -> int | None:
        """Keep a chunk; a descriptor of its file, or None where it cannot be kept (said once)."""
        try:
            self._make_room(len(data) + _DIGEST_BYTES)
            return self._write(chunk, data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning(
                    "the cache of remote data in %s takes no more (%s): it is read without, each time anew. "
                    "data_cache.folder names another",
                    self._settings.folder,
                    error.strerror or error,
                )
            return None

    def _write(self, chunk: Chunk, data: bytes) -> int:
        path = self.path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as handle:
                handle.write(data)
                handle.write(xxhash.xxh3_64_digest(data))
            temporary.replace(path)  # not synced: what a power cut damages, the hash finds
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        self._sound.add((chunk, os.fstat(descriptor).st_ino))
        return descriptor

    @contextlib.contextmanager
    def claim(self, chunk: Chunk) -> Iterator[None]:
        """Let one process at a time fetch a chunk; nobody waits longer than some seconds for another."""
        descriptor = None
        with contextlib.suppress(OSError):  # a full or read-only disk: everybody fetches
            self._locks.mkdir(parents=True, exist_ok=True)
            name = xxhash.xxh3_64_hexdigest(f"{chunk[0]} {chunk[1]}".encode())[:2]
            descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if descriptor is not None:
                _lock_or_give_up(descriptor)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    # --------------------------------------------------------------------------------------------- room

    def _make_room(self, size: int) -> None:
        """Remove the least recently used chunks where the sum would pass the limit, or the disk be full.

        Raises:
            OSError: there is no room.
        """
        with self._lock:
            self._unseen += size
            short = _free_bytes(self._settings.folder) < _LEAST_FREE_BYTES + size
            if self._unseen < self._slack and not short:
                return
            found = sorted(self._files())
            total = sum(one[1] for one in found)
            wanted = self._settings.max_bytes - self._slack - size
            wanted = min(wanted, total - self._slack) if short else wanted
            for _, bytes_of_it, path in found:
                if total <= wanted:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= bytes_of_it
            self._unseen = 0
            if size > self._settings.max_bytes:
                raise OSError(0, f"data_cache.max_bytes is {self._settings.max_bytes:,}, less than a chunk")
            if short and _free_bytes(self._settings.folder) < _LEAST_FREE_BYTES + size:
                raise OSError(0, f"less than {_LEAST_FREE_BYTES >> 30} GiB of the disk are free")

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(last use, bytes, path) of each chunk; what a killed process left half-written counts, and goes."""
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):
            for folder in os.scandir(self._chunks):
                files = []
                with contextlib.suppress(OSError):
                    files = list(os.scandir(folder.path))
                for file in files:
                    with contextlib.suppress(OSError):
                        found = file.stat(follow_symlinks=False)
                        half = file.name.startswith(".") and now - found.st_mtime_ns > 3600 * 10**9
                        yield 0 if half else found.st_mtime_ns, found.st_size, Path(file.path)
                if not files:
                    with contextlib.suppress(OSError):  # not empty any more
                        Path(folder.path).rmdir()


def _is_sound(descriptor: int, length: int) -> bool:
    content = b""
    with contextlib.suppress(OSError):
        content = os.pread(descriptor, length + _DIGEST_BYTES + 1, 0)
    view = memoryview(content)
    return len(content) == length + _DIGEST_BYTES and xxhash.xxh3_64_digest(view[:length]) == view[length:]


def _lock_or_give_up(descriptor: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return


def _free_bytes(folder: Path) -> int:
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))
    return shutil.disk_usage(there).free
