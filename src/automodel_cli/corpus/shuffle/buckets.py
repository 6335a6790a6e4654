"""Rows in random order with bounded memory, on disk: scattered into buckets by key, then sorted bucket by bucket.

A row is some bytes (a line of JSON, the ids of a document) and a record that begins with its place (``splitting``),
from which its 64-bit key follows. A bucket holds a range of keys, so the buckets one after another, each sorted, are
all rows in the order of their keys. How many buckets there are, and which process wrote to them, decides nothing else.

| file               | content                                                                |
|--------------------|------------------------------------------------------------------------|
| plan.json          | seed, number of buckets, fields of a record                            |
| NNNN.WRITER.docs   | records: place u64, length u64 (bytes), and what else the plan names   |
| NNNN.WRITER.rows   | the rows of these records, one after another                           |
| NNNN_MMMM...       | buckets into which one too large for the memory was divided            |
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from automodel_cli.corpus.shuffle.packed_rows import Rows
from automodel_cli.corpus.shuffle.splitting import shuffle_keys
from automodel_cli.files import ANY_TEMPORARY, disk_errors_named, fsync_folder, write_json
from automodel_cli.json_files import FileModel, Items, read_model

MAX_BUCKETS = 4096  # more would make tiny writes; a bucket that is too large is divided when its turn comes
BYTES_A_ROW = 64  # memory that a row costs besides its bytes while its bucket is sorted
_MOST_OPEN = 256  # files of one process
_PLAN_NAME = "plan.json"
GATHERED_NAME = "gathered"  # folder of buckets that have all rows
NUMBERS_NAME = "numbers.bin"  # of a ``ShuffledSource``
_NO_BUCKETS = "there are no buckets of a shuffle: start over with --overwrite"
_BASE_FIELDS = [("place", "<u8"), ("length", "<u8")]
_ROWS = r"\d{4}(_\d{4})*\.\w+\.(docs|rows)"
_FILES = rf"(plan\.json{ANY_TEMPORARY}|numbers\.bin|{_ROWS}|digests/\d{{4}}\.(bin|dropped))"
WORK_FILES = re.compile(rf"begun|((buckets[^/]*|{GATHERED_NAME})/)?{_FILES}")
"""What is ours in a folder that buckets are made in, as paths in it."""


# ----------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class KeyRange:
    """Keys from ``low`` on, ``width`` of them; can be divided into ranges of nearly equal width."""

    low: int = 0
    width: int = 1 << 64

    @property
    def _shift(self) -> int:
        # With 32 bits of the distance left, distance times ranges fits in 64.
        return max(0, self.width.bit_length() - 1 - 32)

    def range_of(self, keys: np.ndarray, count: int) -> np.ndarray:
        """Which of ``count`` ranges each key (uint64) is in, as uint16; they are in the order of their keys."""
        distance = (keys - np.uint64(self.low)) >> np.uint64(self._shift)
        numbers = distance * np.uint64(count) // np.uint64(max(1, self.width >> self._shift))
        return np.minimum(numbers, np.uint64(count - 1)).astype(np.uint16)

    def divided(self, count: int) -> list[KeyRange]:
        """The ranges that ``range_of`` numbers."""
        steps = max(1, self.width >> self._shift)
        lows = [self.low + (-(-k * steps // count) << self._shift) for k in range(count)]
        stops = [*lows[1:], self.low + self.width]
        return [KeyRange(low, stop - low) for low, stop in zip(lows, stops, strict=True)]


# -------------------------------------------------------------------------------------------- scatter


class _Plan(FileModel):
    """``plan.json``."""

    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)]
    count: Annotated[int, Field(ge=1, le=MAX_BUCKETS)]
    more_fields: Items[Items[Literal["ordinal", "low", "high", "<u8"]]]


@dataclass(frozen=True)
class Buckets:
    """What all who write to and read from a folder of buckets agree on; can be pickled."""

    folder: Path
    seed: int
    count: int
    more_fields: tuple[tuple[str, str], ...] = ()  # of a record, besides place and length

    @property
    def record(self) -> np.dtype:
        """A row's record."""
        return np.dtype([*_BASE_FIELDS, *self.more_fields])

    @staticmethod
    def below(folder: Path, seed: int, count: int, more_fields: tuple[tuple[str, str], ...] = ()) -> Buckets:
        """Buckets without rows, in a folder of their own below ``folder``.

        A new one each time: a worker that outlives its killed parent by a moment finds no place to write to.
        """
        with disk_errors_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            own = Path(tempfile.mkdtemp(prefix="buckets-", dir=folder))
        buckets = Buckets(own, seed, count, more_fields)
        buckets.create()
        return buckets

    def create(self) -> None:
        """Begin with no rows, in a folder that holds none."""
        with disk_errors_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        fields = [list(field) for field in self.more_fields]
        write_json(self.folder / _PLAN_NAME, {"seed": self.seed, "count": self.count, "more_fields": fields})

    @staticmethod
    def open(folder: Path) -> Buckets:
        """The buckets that an earlier process made.

        Raises:
            DataError: there are none.
        """
        plan = read_model(folder / _PLAN_NAME, _Plan, hint=_NO_BUCKETS)
        more = tuple((name, "<u8") for name, *_ in plan.more_fields)
        return Buckets(folder, plan.seed, plan.count, more)

    def names(self) -> list[str]:
        """All buckets, in the order of their keys."""
        return [f"{number:04d}" for number in range(self.count)]

    def bucket_of(self, places: np.ndarray) -> np.ndarray:
        """The number of the bucket of each place."""
        return KeyRange().range_of(shuffle_keys(self.seed, places), self.count)

    def sync(self) -> None:
        """Make all rows durable."""
        for path in self.folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(self.folder)

    def stored(self) -> tuple[int, int]:
        """How many rows there are, and their bytes."""
        sizes = {".docs": 0, ".rows": 0}
        for path in self.folder.iterdir():
            if path.suffix in sizes:
                sizes[path.suffix] += path.stat().st_size
        return sizes[".docs"] // self.record.itemsize, sizes[".rows"]

    def count_below(self, key: int) -> int:
        """How many rows have a key below ``key``."""
        below = 0
        ranges = KeyRange().divided(self.count)
        for path in self.folder.glob("*.docs"):
            keys = ranges[int(path.name.partition(".")[0])]
            if keys.low + keys.width <= key:
                below += path.stat().st_size // self.record.itemsize
            elif keys.low < key:
                for records in iter_array(path, self.record, 1 << 18):
                    found = shuffle_keys(self.seed, records["place"])
                    below += int(np.count_nonzero(found < np.uint64(key)))
        return below

    def iter_records(self, rows: int) -> Iterator[np.ndarray]:
        """All records, at most ``rows`` at a time, in no order."""
        for path in sorted(self.folder.glob("*.docs")):
            yield from iter_array(path, self.record, rows)


class BucketWriter:
    """Adds rows to buckets, in files that no other writer has."""

    def __init__(self, buckets: Buckets, writer: str = "0") -> None:
        self._buckets, self._names = buckets, [f"{name}.{writer}" for name in buckets.names()]
        self._files = AppendedFiles(buckets.folder)

    def scatter(self, data: np.ndarray, records: np.ndarray) -> None:
        """Add rows: ``data`` (uint8) holds them one after another, as long as their ``records`` say.

        Raises:
            AutomodelError: the disk is full.
        """
        append_rows(data, records, self._buckets.bucket_of(records["place"]), self._names, self._files)

    def close(self) -> None:
        """No more rows."""
        self._files.close()


class AppendedFiles:
    """Files of one folder that are appended to; they stay open where they are few."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}

    def append(self, name: str, array: np.ndarray) -> None:
        """Add an array's bytes to the file ``name``.

        Raises:
            AutomodelError: the disk is full.
        """
        with disk_errors_named(self._folder / name):
            descriptor = self._open.get(name)
            if descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = os.open(self._folder / name, flags, 0o644)
            try:
                write_all(descriptor, array)
            finally:
                if name in self._open or len(self._open) < _MOST_OPEN:
                    self._open[name] = descriptor
                else:
                    os.close(descriptor)

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def append_rows(
    data: np.ndarray, records: np.ndarray, numbers: np.ndarray, names: list[str], files: AppendedFiles
) -> None:
    """Append each row to the files of ``names[number]``."""
    rows = Rows(data, records["length"].astype(np.int64))
    for number, chosen in grouped(numbers):
        files.append(f"{names[number]}.rows", rows.take(chosen))
        files.append(f"{names[number]}.docs", records[chosen])


def grouped(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number that occurs in ``numbers`` (uint16), with the places where it does."""
    order = np.argsort(numbers, kind="stable")  # a radix sort
    counts = np.bincount(numbers)
    stops = np.cumsum(counts)
    for number in np.flatnonzero(counts).tolist():
        yield number, order[stops[number] - counts[number] : stops[number]]


def write_all(descriptor: int, array: np.ndarray) -> None:
    """Write every byte of a contiguous array; the kernel takes 2 GiB at most at a time."""
    rest = memoryview(array.data).cast("B") if len(array) else memoryview(b"")
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]


def iter_array(path: Path, dtype: np.dtype, items: int) -> Iterator[np.ndarray]:
    """The array in a file, at most ``items`` at a time."""
    with path.open("rb") as handle:
        while len(array := np.fromfile(handle, dtype=dtype, count=items)):
            yield array


def bucket_count(expected_bytes: int, expected_rows: int, memory_bytes: int) -> int:
    """Buckets so that one takes half of the memory: a reader takes up to three quarters, and keys scatter."""
    needed = expected_bytes + BYTES_A_ROW * expected_rows
    return max(1, min(MAX_BUCKETS, -(-needed * 2 // memory_bytes)))
