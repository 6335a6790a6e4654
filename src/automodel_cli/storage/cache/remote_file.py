"""Random access to remote files: by chunks kept on the disk, fetched ahead by threads where that was announced.

A reader asks for bytes; what was announced (``expect``) is there or on its way, the rest is fetched while it waits.
Rows in file order bring chunks. Rows all over the files are fetched by themselves, as a chunk for each would be a
thousand times what is needed; chunks then come in the background, one after another, where all have room in the cache.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import xxhash

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.storage.cache.chunk_store import Chunk, ChunkStore
from automodel_cli.storage.cache.settings import CacheSettings
from automodel_cli.storage.opening import open_store

_THREADS = 16
_MOST_OPEN = 256  # chunks whose files are held open
_MOST_IN_MEMORY_BYTES = 256 << 20  # of chunks that the disk does not take
_MOST_COMING = 256  # requests that wait or are under way
_MOST_STAGED = 8192
_RECENT = 64  # places where rows were expected lately
_CLOSE_ROWS = 64  # rows so close to each other are read in order: ranks take turns
_SOON, _LATER = 0, 1
_log = logging.getLogger(__name__)
Range = tuple[int, int]  # first byte, one past the last


@dataclass(frozen=True)
class RemoteObject:
    """An object as it was listed, and how it is kept."""

    url: str
    size: int
    etag: str
    cache: CacheSettings

    @functools.cached_property
    def key(self) -> str:
        """Names its chunks; another content or chunk size has another."""
        text = "\n".join((self.url, str(self.size), self.etag, str(self.cache.chunk_bytes)))
        return xxhash.xxh3_128_hexdigest(text.encode())


class RemoteFile:
    """The bytes of one object. Any thread may read."""

    def __init__(self, remote: RemoteObject) -> None:
        self.remote = remote
        self._fetcher = fetcher_of(remote.cache)

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill ``view``, of bytes, with those from ``start`` on.

        Raises:
            DataError: the object has changed, or ends before.
            AutomodelError: the store does not give it.
        """
        if start < 0 or start + len(view) > self.remote.size:
            raise DataError(
                f"bytes {start:,} to {start + len(view):,} asked of {self.remote.url}, which has {self.remote.size:,}"
            )
        staged = self._fetcher.staged(self.remote, (start, start + len(view)))
        if staged is not None:
            view[:] = staged
            return
        size = self.remote.cache.chunk_bytes
        while len(view):
            number, within = divmod(start, size)
            count = min(len(view), size - within)
            self._fetcher.chunk(self.remote, number).read_into(within, view[:count])
            start, view = start + count, view[count:]

    def stage(self, ranges: Iterable[Range]) -> None:
        """Fetch just these bytes, which are then read once, in these ranges."""
        for one in ranges:
            self._fetcher.stage(self.remote, one)


@functools.lru_cache(maxsize=8)
def _fetcher(cache: CacheSettings, process: int) -> Fetcher:
    return Fetcher(cache)


def fetcher_of(cache: CacheSettings) -> Fetcher:
    """The one of this process: threads do not survive a fork."""
    return _fetcher(cache, os.getpid())


class _OnDisk:
    """An open chunk; its file may be removed meanwhile."""

    in_memory = 0

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_into(self, start: int, view: memoryview) -> None:
        while len(view):
            done = os.preadv(self._descriptor, (view,), start)
            if done == 0:
                raise DataError("a chunk in the cache of remote data became shorter", "delete the cache folder")
            start, view = start + done, view[done:]

    def __del__(self) -> None:
        os.close(self._descriptor)


class _InMemory:
    """A chunk that the disk did not take."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.in_memory = len(data)

    def read_into(self, start: int, view: memoryview) -> None:
        view[:] = self._data[start : start + len(view)]


OpenChunk = _OnDisk | _InMemory


class Fetcher:
    """What a process has of remote files, and what is on its way."""

    def __init__(self, cache: CacheSettings) -> None:
        self.cache = cache
        self.store = ChunkStore(cache)
        self._lock = threading.Lock()
        self._open: OrderedDict[Chunk, OpenChunk] = OrderedDict()
        self._coming: dict[Chunk, Future[OpenChunk]] = {}
        self._staged: OrderedDict[tuple[str, Range], Future[bytes]] = OrderedDict()
        self._recent: OrderedDict[tuple[str, int], None] = OrderedDict()  # where rows were expected
        self.has_staged = False  # whether rows were fetched by themselves
        self._work: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._number = itertools.count()
        self._threads = 0
        self._filling: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------ reading

    def chunk(self, remote: RemoteObject, number: int) -> OpenChunk:
        """A chunk, waited for or fetched now if it is not here.

        Raises:
            AutomodelError: it cannot be fetched.
        """
        chunk = (remote.key, number)
        with self._lock:
            found = self._open.get(chunk)
            if found is not None:
                self._open.move_to_end(chunk)
                return found
            coming = self._coming.get(chunk)
        if coming is not None:
            try:
                return coming.result()
            except AutomodelError:  # what was fetched ahead may fail; what is needed is tried once more
                _log.debug("chunk %d of %s did not come ahead", number, remote.url)
        opened = self._fetched(remote, number)
        self._keep(chunk, opened)
        return opened

    def staged(self, remote: RemoteObject, bytes_range: Range) -> bytes | None:
        """Bytes that were staged, which are given out once."""
        if not self._staged:
            return None
        with self._lock:
            coming = self._staged.pop((remote.key, bytes_range), None)
        if coming is None:
            return None
        try:
            return coming.result()
        except AutomodelError:
            return None

    def _fetched(self, remote: RemoteObject, number: int) -> OpenChunk:
        """A chunk from the disk, else from the store."""
        chunk, size = (remote.key, number), self.cache.chunk_bytes
        start = number * size
        length = min(size, remote.size - start)
        descriptor = self.store.open(chunk, length)
        if descriptor is not None:
            return _OnDisk(descriptor)
        with self.store.claim(chunk):
            descriptor = self.store.open(chunk, length)  # fetched by another process meanwhile
            if descriptor is not None:
                return _OnDisk(descriptor)
            data = _read(remote, (start, start + length))
            descriptor = self.store.add(chunk, data)
        return _InMemory(data) if descriptor is None else _OnDisk(descriptor)

    def _keep(self, chunk: Chunk, opened: OpenChunk) -> None:
        with self._lock:
            self._open[chunk] = opened
            self._open.move_to_end(chunk)
            in_memory = sum(one.in_memory for one in self._open.values()) if opened.in_memory else 0
            while len(self._open) > _MOST_OPEN or in_memory > _MOST_IN_MEMORY_BYTES:
                in_memory -= self._open.popitem(last=False)[1].in_memory

    # ------------------------------------------------------------------------------------------ ahead

    def expect(self, rows: Sequence[tuple[RemoteObject, Range]]) -> int:
        """Fetch what these reads will need; how many requests that takes."""
        size, requests = self.cache.chunk_bytes, 0
        for remote, (start, stop) in rows:
            follows = self._follows(remote, start, stop)
            numbers = range(start // size, (stop - 1) // size + 1)
            missing = [number for number in numbers if not self._is_near((remote.key, number))]
            if missing and not follows and not all(self.store.has((remote.key, number)) for number in missing):
                requests += self.stage(remote, (start, stop))
            else:
                requests += sum(self._fetch_ahead(remote, number) for number in missing)
        return requests

    def _is_near(self, chunk: Chunk) -> bool:
        return chunk in self._open or chunk in self._coming

    def _follows(self, remote: RemoteObject, start: int, stop: int) -> bool:
        """Whether rows lately expected lie close before this one or after it, as where files are read in order."""
        place = start // (_CLOSE_ROWS * max(stop - start, 1))
        with self._lock:
            found = any((remote.key, one) in self._recent for one in (place - 1, place, place + 1))
            self._recent[remote.key, place] = None
            self._recent.move_to_end((remote.key, place))
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return found

    def stage(self, remote: RemoteObject, bytes_range: Range) -> int:
        """Fetch just these bytes for one read; 1 where that takes a request, else 0."""
        key = (remote.key, bytes_range)
        with self._lock:
            if key in self._staged:
                return 0
            coming: Future[bytes] = Future()
            self._staged[key] = coming
            if len(self._staged) > _MOST_STAGED:
                self._staged.popitem(last=False)
        self.has_staged = True
        self._put(_SOON, lambda: _settle(coming, lambda: _read(remote, bytes_range)))
        return 1

    def _fetch_ahead(self, remote: RemoteObject, number: int) -> int:
        chunk = (remote.key, number)
        with self._lock:
            if self._is_near(chunk) or len(self._coming) >= _MOST_COMING:
                return 0
            coming: Future[OpenChunk] = Future()
            self._coming[chunk] = coming

        def work() -> None:
            _settle(coming, lambda: self._fetched(remote, number))
            if coming.exception() is None:
                self._keep(chunk, coming.result())
            with self._lock:
                self._coming.pop(chunk, None)

        self._put(_LATER, work)
        return 1

    def fill(self, files: Sequence[RemoteObject]) -> None:
        """Fetch all chunks of these files in the background, where they have room; once in a process."""
        with self._lock:
            wanted = sum(one.size for one in files)
            if self._filling is not None or wanted > self.cache.max_bytes * 7 // 8:
                return
            self._filling = threading.Thread(target=self._fill, args=(files,), name="cache fill", daemon=True)
        self._filling.start()

    def _fill(self, files: Sequence[RemoteObject]) -> None:
        try:
            for remote in files:
                for number in range(-(-remote.size // self.cache.chunk_bytes)):
                    if not self.store.has((remote.key, number)) and isinstance(
                        self._fetched(remote, number), _InMemory
                    ):
                        return  # the disk takes no more
        except AutomodelError as error:
            _log.warning("the cache is not filled further: %s", error.message)

    def _put(self, when: int, work: Callable[[], None]) -> None:
        with self._lock:
            if self._threads < _THREADS:
                self._threads += 1
                # Daemons: a process does not wait at its end for what it will not read.
                threading.Thread(target=self._serve, name="remote read", daemon=True).start()
        self._work.put((when, next(self._number), work))

    def _serve(self) -> None:
        while True:
            self._work.get()[2]()


def _settle(future: Future, make: Callable[[], object]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:
        future.set_exception(error)


def _read(remote: RemoteObject, bytes_range: Range) -> bytes:
    start, stop = bytes_range
    data = open_store(remote.url).read(remote.url, start, stop, etag=remote.etag)
    if len(data) != stop - start:
        raise DataError(
            f"{remote.url} gave {len(data):,} of bytes {start:,} to {stop:,}, expected {stop - start:,}",
            "it became shorter while it was read; put it back and resume from the last checkpoint",
        )
    return data
