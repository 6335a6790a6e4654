"""Many files, of which a process may hold only so many open."""

from __future__ import annotations

import functools
import logging
import resource
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from automodel_cli.corpus.formats.nanogpt_bin import TokenFile
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.storage.cache.remote_file import Range, RemoteObject, fetcher_of
from automodel_cli.storage.cache.settings import CacheSettings

_RESERVED_FILES = 128  # descriptors left to everything else in the process
_log = logging.getLogger(__name__)
_Opened = TypeVar("_Opened")


class OpenFiles(Generic[_Opened]):
    """Things opened by number when first needed, no more of them at a time than the process may hold open.

    A mapping keeps a file descriptor, so they are bounded. Two threads may ask: opening takes a lock. Can be
    pickled if ``opener`` can (everything is opened anew).
    """

    def __init__(self, count: int, opener: Callable[[int], _Opened], *, descriptors_each: int = 1) -> None:
        self._opener = opener
        self._open: dict[int, _Opened] = {}
        self._limit = max(8, open_files_allowed(count * descriptors_each) // descriptors_each)
        self._lock = threading.Lock()

    def __call__(self, number: int) -> _Opened:
        """Number ``number``, opened now if it is not open."""
        opened = self._open.get(number)
        return self._opened(number) if opened is None else opened

    def _opened(self, number: int) -> _Opened:
        with self._lock:
            if number not in self._open:
                if len(self._open) >= self._limit:  # the oldest goes; it closes when its last reader lets go
                    self._open.pop(next(iter(self._open)))
                self._open[number] = self._opener(number)
            return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class TokenShards:
    """The readers of token files by number, opened when first needed."""

    def __init__(self, files: Sequence[TokenFile], mmap: bool | Literal["auto"]) -> None:
        self._files = files
        self.mmap = mmap
        # A mapping has a descriptor of its own, beside the one by which the file is watched.
        self.reader: Callable[[int], TokenReader] = OpenFiles(len(files), self._open, descriptors_each=2)

    def checked(self, shard: int) -> TokenReader:
        """The reader of a shard, which was not cut off since it was opened: ask before its ``tokens`` are used."""
        reader = self.reader(shard)
        reader.check()
        return reader

    @functools.cached_property
    def are_remote(self) -> bool:
        """Whether some are read from object storage, so that it is worth while to say ahead what will be read."""
        return any(file.remote is not None for file in self._files)

    def expect(self, stretches: Iterable[tuple[int, int, int]]) -> int:
        """Have the tokens ``first`` to ``end`` of shards fetched that are remote; how many requests that takes."""
        by_cache: dict[CacheSettings, list[tuple[RemoteObject, Range]]] = {}
        for shard, first, end in stretches:
            file = self._files[shard]
            if file.remote is not None:
                start, stop = (file.offset_bytes + token * file.dtype.itemsize for token in (first, end))
                by_cache.setdefault(file.remote.cache, []).append((file.remote, (start, stop)))
        requests = 0
        for cache, rows in by_cache.items():
            fetcher = fetcher_of(cache)
            requests += fetcher.expect(rows)
            if fetcher.has_staged:
                own = [file.remote for file in self._files if file.remote is not None and file.remote.cache == cache]
                fetcher.fill(own)
        return requests

    def _open(self, shard: int) -> TokenReader:
        reader = TokenReader(self._files[shard], mmap=self.mmap)
        if reader.tokens is None and reader.remote is None:
            self.mmap = False  # the file system cannot map: said once, then not tried again
        return reader


def open_files_allowed(wanted: int) -> int:
    """How many files may stay open; raises this process's soft limit on descriptors towards the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError) as error:
            _log.debug("the limit on open files stays at %d: %s", soft, error)
    return wanted if soft == resource.RLIM_INFINITY else max(8, min(wanted, soft - _RESERVED_FILES))
