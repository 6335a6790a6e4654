"""The second half of a shuffle: rows of buckets in the order of their keys, with bounded memory.

A bucket is what lies in one or more *segments*, slices of files. One that does not fit into the memory is divided on
disk first, into files ``NNNN_MMMM.0.docs`` and ``.rows`` of a folder that is the reader's.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from automodel_cli.corpus.shuffle.buckets import (
    BYTES_A_ROW,
    MAX_BUCKETS,
    AppendedFiles,
    Buckets,
    KeyRange,
    append_rows,
)
from automodel_cli.corpus.shuffle.packed_rows import Rows
from automodel_cli.corpus.shuffle.splitting import shuffle_keys
from automodel_cli.errors import DataError

_GROUP_BYTES = 1 << 20  # handed on at once: little enough for the caches of a core


@dataclass(frozen=True)
class SortedRows:
    """Some rows in the order of their keys; ``key`` is that of the first, where a later run could begin."""

    key: int
    records: np.ndarray
    data: np.ndarray


@dataclass(frozen=True)
class Slice:
    """Bytes ``start`` to ``stop`` of a file."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    @staticmethod
    def whole(path: Path) -> Slice:
        """All of a file."""
        return Slice(path, 0, path.stat().st_size)

    def arrays(self, dtype: np.dtype, items: int) -> Iterator[np.ndarray]:
        """The array that it holds, at most ``items`` at a time."""
        left = self.size // dtype.itemsize
        with self.path.open("rb") as handle:
            handle.seek(self.start)
            while left and len(array := np.fromfile(handle, dtype=dtype, count=min(items, left))):
                left -= len(array)
                yield array


@dataclass(frozen=True)
class Segment:
    """Records of some rows, and the rows."""

    docs: Slice
    rows: Slice


class BucketSorter:
    """Sorts one bucket after another.

    Args:
        buckets: seed and record of the rows.
        folder: where a bucket that is too large is divided.
        group_bytes: hand on at most so much at a time (or one row).
    """

    def __init__(self, buckets: Buckets, folder: Path, memory_bytes: int, *, group_bytes: int = _GROUP_BYTES) -> None:
        self._seed, self._record, self._folder = buckets.seed, buckets.record, folder
        # For a bucket; the rest is for sorted rows on their way.
        self._memory_bytes = max(1, memory_bytes * 3 // 4)
        self._group_bytes = max(1, min(group_bytes, memory_bytes // 16))

    def read(
        self,
        name: str,
        keys: KeyRange,
        segments: Sequence[Segment],
        *,
        first_key: int = 0,
        dropped: np.ndarray | None = None,
        done_with: Callable[[], None] = lambda: None,
    ) -> Iterator[SortedRows]:
        """The rows of bucket ``name`` from ``first_key`` on, without those at the places ``dropped``.

        ``done_with`` is called when the segments were read for the last time.

        Raises:
            DataError: the bucket is not whole.
            AutomodelError: the disk is full.
        """
        num_rows = sum(segment.docs.size for segment in segments) // self._record.itemsize
        needed = sum(segment.rows.size for segment in segments) + BYTES_A_ROW * num_rows
        fits = needed <= self._memory_bytes or keys.width < 2
        if fits or not self._worth_dividing(segments, needed):
            yield from self._sorted(name, segments, first_key, dropped)
            done_with()
            return
        count = min(MAX_BUCKETS, -(-needed * 4 // (self._memory_bytes * 3)))
        names = [f"{name}_{number:04d}" for number in range(count)]
        self._divide(segments, keys, names)
        done_with()
        for inner, inner_keys in zip(names, keys.divided(count), strict=True):
            docs = self._folder / f"{inner}.0.docs"
            if not docs.exists():
                continue
            if inner_keys.low + inner_keys.width > first_key:
                inside = functools.partial(_remove, [docs])
                segments = [_segment(docs)]
                yield from self.read(
                    inner, inner_keys, segments, first_key=first_key, dropped=dropped, done_with=inside
                )
            else:
                _remove([docs])

    def _worth_dividing(self, segments: Sequence[Segment], needed: int) -> bool:
        """Whether it is not just one huge row that makes the bucket large."""
        largest = 0
        for segment in segments:
            for records in segment.docs.arrays(self._record, 1 << 16):
                largest = max(largest, int(records["length"].max()))
        return needed - largest > self._memory_bytes // 8

    def _divide(self, segments: Sequence[Segment], keys: KeyRange, names: list[str]) -> None:
        """Move the rows of a bucket to smaller ones, some at a time."""
        most_bytes = max(1, self._memory_bytes // 4)
        files = AppendedFiles(self._folder)
        writers = [f"{inner}.0" for inner in names]
        for segment in segments:
            with segment.rows.path.open("rb") as rows:
                rows.seek(segment.rows.start)
                for records in segment.docs.arrays(self._record, max(1, most_bytes // BYTES_A_ROW)):
                    for some in _runs_of(records, most_bytes):
                        data = _read_rows(rows, some["length"], segment.rows)
                        numbers = keys.range_of(shuffle_keys(self._seed, some["place"]), len(names))
                        append_rows(data, some, numbers, writers, files)
        files.close()

    def _sorted(
        self, name: str, segments: Sequence[Segment], first_key: int, dropped: np.ndarray | None
    ) -> Iterator[SortedRows]:
        records, data = self._load(name, segments)
        keys = shuffle_keys(self._seed, records["place"])
        order = np.argsort(keys)
        if len(order) and (keys[order[1:]] == keys[order[:-1]]).any():  # one place twice: in order of arrival
            order = np.argsort(keys, kind="stable")
        if first_key:
            order = order[keys[order] >= np.uint64(first_key)]
        if dropped is not None and len(dropped):
            order = order[~np.isin(records["place"][order], dropped)]
        rows = Rows(data, records["length"].astype(np.int64))
        for some in _runs_of(records, self._group_bytes, order):
            yield SortedRows(int(keys[some[0]]), records[some], rows.take(some))

    def _load(self, name: str, segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Records and bytes of a bucket, from all who wrote to it."""
        found = [array for segment in segments for array in segment.docs.arrays(self._record, 1 << 20)]
        records = np.concatenate(found) if found else np.zeros(0, dtype=self._record)
        data = np.empty(sum(segment.rows.size for segment in segments), dtype=np.uint8)
        position = 0
        for segment in segments:
            stop = position + segment.rows.size
            with segment.rows.path.open("rb", buffering=0) as handle:
                handle.seek(segment.rows.start)
                while count := handle.readinto(data[position:stop].data):
                    position += count
        longest = int(records["length"].max(initial=0))  # a sum of larger ones could wrap around
        if position != len(data) or longest > len(data) or int(records["length"].sum()) != len(data):
            raise _not_whole(segments[0].docs.path.with_name(name))
        return records, data


class BucketReader:
    """All rows of some buckets in the order of their keys.

    A bucket that does not fit into ``memory_bytes`` is divided on disk first, so memory is bounded even where the
    number of buckets was a bad guess; only a single row may be larger.

    Args:
        keep: leave the files, so that reading can begin again; otherwise each bucket goes when it was read, and the
            disk never holds the rows twice.
        dropped: places to leave out, for a bucket by its number.
        group_bytes: hand on at most so much at a time (or one row).
    """

    def __init__(
        self,
        buckets: Buckets,
        memory_bytes: int,
        *,
        keep: bool = False,
        dropped: Callable[[int], np.ndarray] | None = None,
        group_bytes: int = _GROUP_BYTES,
    ) -> None:
        self._buckets, self._keep, self._dropped = buckets, keep, dropped
        self._sorter = BucketSorter(buckets, buckets.folder, memory_bytes, group_bytes=group_bytes)
        self._files: dict[str, list[Path]] = defaultdict(list)  # bucket -> its .docs files
        for path in sorted(buckets.folder.iterdir()):
            name = path.name.partition(".")[0]
            if "_" in name:
                path.unlink()  # a division that was interrupted
            elif path.suffix == ".docs":
                self._files[name].append(path)

    def read(self, first_key: int = 0) -> Iterator[SortedRows]:
        """The rows from ``first_key`` on.

        Raises:
            DataError: a bucket is not whole.
            AutomodelError: the disk is full.
        """
        ranges = KeyRange().divided(self._buckets.count)
        for number, (name, keys) in enumerate(zip(self._buckets.names(), ranges, strict=True)):
            files = self._files.pop(name, [])
            if files and keys.low + keys.width > first_key:
                yield from self._sorter.read(
                    name,
                    keys,
                    [_segment(docs) for docs in files],
                    first_key=first_key,
                    dropped=self._dropped(number) if self._dropped else None,
                    done_with=functools.partial(_remove, [] if self._keep else files),
                )


def _segment(docs: Path) -> Segment:
    return Segment(Slice.whole(docs), Slice.whole(docs.with_suffix(".rows")))


def _remove(docs: list[Path]) -> None:
    """The rows are elsewhere now."""
    for path in docs:
        path.unlink()
        path.with_suffix(".rows").unlink()


def _runs_of(records: np.ndarray, most_bytes: int, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """``records`` (or their numbers in ``order``) in runs of at most ``most_bytes``, or one row."""
    chosen = records if order is None else order
    lengths = (records if order is None else records[order])["length"].astype(np.int64)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(chosen):
        begin = int(ends[first] - lengths[first])
        stop = max(first + 1, int(np.searchsorted(ends, begin + most_bytes, side="right")))
        yield chosen[first:stop]
        first = stop


def _read_rows(handle: IO[bytes], lengths: np.ndarray, rows: Slice) -> np.ndarray:
    """The next rows of a slice, as long as ``lengths`` say; nothing is allocated on their word."""
    left = min(rows.stop, os.fstat(handle.fileno()).st_size) - handle.tell()
    if int(lengths.max(initial=0)) > left or int(lengths.sum()) > left:
        raise _not_whole(rows.path)
    return np.fromfile(handle, dtype=np.uint8, count=int(lengths.sum()))


def _not_whole(path: Path) -> DataError:
    return DataError(f"{path} is not whole", "run again with --overwrite")
