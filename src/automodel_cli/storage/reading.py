"""Objects as files: a stream that is read ahead, and a file that is read here and there; and URLs that name a version.

A *pinned* URL, ``URL#SIZE-ETAG``, says which content is meant, so that it can stand wherever a path stands and whoever
reads it, on any machine, gets the bytes that were listed or an error.
"""

from __future__ import annotations

import functools
import io
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from automodel_cli.storage.store import ObjectChanged, ObjectInfo, Store

PART_BYTES = 8 << 20
"""Of uploads, and of downloads side by side."""
SIDE_BY_SIDE = 8
_AHEAD = 4  # parts of a stream: 32 MiB
_TAIL_BYTES = 64 << 10  # where parquet files have their index
_TAILS = 128  # of them, that a process keeps


def pinned(info: ObjectInfo) -> str:
    """The URL of exactly this content."""
    return f"{info.url}#{info.size}-{info.etag}"


def unpinned(path: str) -> ObjectInfo:
    """What a pinned URL says."""
    url, _, version = path.rpartition("#")
    size, _, etag = version.partition("-")
    return ObjectInfo(url, int(size), etag)


def reading_threads() -> ThreadPoolExecutor:
    """Threads that wait for the network, of this process."""
    return _threads(os.getpid())


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4 * SIDE_BY_SIDE, "storage")


def blocks(store: Store, info: ObjectInfo, start: int = 0, *, ahead: int = SIDE_BY_SIDE) -> Iterator[bytes]:
    """All bytes of an object from ``start`` on, in order, some parts ahead of who takes them.

    Raises:
        ObjectChanged: it is no longer what ``info`` says.
    """
    starts = iter(range(start, info.size, PART_BYTES))
    waiting: deque[Future[bytes]] = deque()

    def ask() -> None:
        if (at := next(starts, None)) is not None:
            stop = min(at + PART_BYTES, info.size)
            waiting.append(reading_threads().submit(read_exactly, store, info, at, stop))

    for _ in range(ahead):
        ask()
    try:
        while waiting:
            block = waiting.popleft().result()
            ask()
            yield block
    finally:
        for future in waiting:
            future.cancel()


def read_exactly(store: Store, info: ObjectInfo, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop``, or as many as the object has.

    Raises:
        ObjectChanged: it is no longer what ``info`` says.
    """
    stop = min(stop, info.size)
    data = store.read(info.url, start, stop, etag=info.etag)
    if len(data) != max(0, stop - start):
        raise ObjectChanged(f"{info.url} became shorter while it was read", "run the command again")
    return data


class ObjectStream(io.RawIOBase):
    """An object from its beginning to its end, read ahead once it is read at all; ``pread`` reads anywhere."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._blocks: Iterator[bytes] | None = None
        self._block = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._blocks is None:
            self._blocks = blocks(self._store, self._info, ahead=_AHEAD)
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        out = memoryview(buffer).cast("B")
        count = min(len(out), len(self._block))
        out[:count] = self._block[:count]
        self._block = self._block[count:]
        self._position += count
        return count

    def pread(self, count: int, at: int) -> bytes:
        """As ``os.pread``."""
        return read_exactly(self._store, self._info, at, at + count)

    def close(self) -> None:
        if self._blocks is not None:
            self._blocks.close()  # type: ignore[attr-defined]
            self._blocks = None
        super().close()


class ObjectFile(io.RawIOBase):
    """An object that is read here and there, for readers of parquet: each read is one request.

    The end, which every reader looks at first, is kept for a number of objects.
    """

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info = store, info
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._info.size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = self._read(self._position, self._position + count)
        self._position += count
        return data

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        data = self.read(len(out))
        out[: len(data)] = data
        return len(data)

    def _read(self, start: int, stop: int) -> bytes:
        begin = max(0, self._info.size - _TAIL_BYTES)
        if start < begin or start == stop:
            return read_exactly(self._store, self._info, start, stop)
        tail = _tails.get(self._info)
        if tail is None:
            tail = _tails[self._info] = read_exactly(self._store, self._info, begin, self._info.size)
            while len(_tails) > _TAILS:
                _tails.popitem(last=False)
        return tail[start - begin : stop - begin]


_tails: OrderedDict[ObjectInfo, bytes] = OrderedDict()
