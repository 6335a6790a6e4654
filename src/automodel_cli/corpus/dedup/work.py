"""The temporary files of a run: each is made by one task, whole or not at all, and names no time, place or process.

| file                      | content                                                                   | stage    |
|---------------------------|---------------------------------------------------------------------------|----------|
| plan.json                 | what decides the bytes, and how the work is cut                           | (begin)  |
| read/PART.documents       | a record for each document of a part                                      | read     |
| read/PART.signatures      | their signatures, uint32                                                  | read     |
| read/PART.shingles, .sets | for exact verification: their shingles, sorted; where each set begins     | read     |
| read/PART.digests         | hashes of their texts, grouped by partition                               | read     |
| read/PART.json            | counts, bad rows, samples of what filters left out                        | read     |
| exact/PARTITION.copies    | copies and the first of each text, grouped by the copy's part             | exact    |
| bands/PART.keys           | hashes of the bands of signatures, grouped by partition                   | bands    |
| near/PARTITION.pairs      | pairs that are near-duplicates                                            | near     |
| clusters/parents          | for each document the number of the one that stays in its place           | clusters |
| clusters/states           | for each document what becomes of it                                      | clusters |
| clusters/00000.json       | counts, largest clusters, and which documents go into which file          | clusters |
| write/FILE.jsonl          | the documents that stay                                                   | write    |
| write/FILE.json           | counts by source, similarities, examples                                  | write    |

A *place* is ``part << 40 | number in the part``: places are in the order of the source, however it was cut.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from automodel_cli.corpus.shuffle.buckets import grouped
from automodel_cli.errors import DataError
from automodel_cli.files import TEMP_SUFFIX, atomic_file, disk_errors_named

STAGES = ("read", "exact", "bands", "near", "clusters", "write")
WORK_NAME = ".dedup"
WORK_FILES = re.compile(
    rf"begun|plan\.json({re.escape(TEMP_SUFFIX)})?|"
    rf"({'|'.join(STAGES)})/(\d{{5,}}\.[a-z]+|parents|states)(\.[0-9a-f]{{12}}{re.escape(TEMP_SUFFIX)})?"
)
"""What is ours in the work folder, as paths in it."""
_AGAIN = "run again with --overwrite"
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class WorkFolder:
    """Where the files of each task are."""

    folder: Path

    @property
    def plan(self) -> Path:
        """The plan, which is there before any task begins."""
        return self.folder / "plan.json"

    @property
    def begun(self) -> Path:
        """Says that a run is under way; locked while the plan is written."""
        return self.folder / "begun"

    def path(self, stage: str, task: int, kind: str) -> Path:
        """A file that one task leaves."""
        return self.folder / stage / f"{task:05d}.{kind}"

    @property
    def parents(self) -> Path:
        """For each document the number of the one that stays in its place, uint64."""
        return self.folder / "clusters" / "parents"

    @property
    def states(self) -> Path:
        """For each document what becomes of it, uint8."""
        return self.folder / "clusters" / "states"


@contextlib.contextmanager
def published(path: Path) -> Iterator[IO[bytes]]:
    """A file under a name that no other process uses; it becomes ``path``, durably, on clean exit.

    Raises:
        AutomodelError: the disk is full.
    """
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w+b", unique=True, buffering=_WRITE_BYTES) as handle:
        yield handle


def load(path: Path, dtype: Any, *, first: int = 0, count: int = -1) -> np.ndarray:
    """The array in a file, or ``count`` items of it from ``first`` on.

    Raises:
        DataError: it is not there, or not whole.
    """
    dtype = np.dtype(dtype)
    try:
        found = np.fromfile(path, dtype=dtype, count=count, offset=first * dtype.itemsize)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", _AGAIN) from error
    if count >= 0 and len(found) != count:
        raise _not_whole(path)
    return found


def _not_whole(path: Path) -> DataError:
    return DataError(f"{path} is not whole", _AGAIN)


# -------------------------------------------------------------------------------------- grouped records


class GroupedWriter:
    """Records that later tasks read group by group, in one file.

    Records are held until ``run_bytes`` of them are there, and written grouped: a *run*. The end of the file says where
    each group of each run begins: uint64 [runs, groups + 1] in records, then the number of runs.
    """

    def __init__(self, handle: IO[bytes], dtype: np.dtype, groups: int, run_bytes: int = 16 << 20) -> None:
        self._handle, self._dtype, self._groups = handle, dtype, groups
        self._most = max(1, run_bytes // dtype.itemsize)
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = self._written = 0
        self._table: list[np.ndarray] = []

    def add(self, records: np.ndarray, numbers: np.ndarray) -> None:
        """Take records (of the file's dtype), each of the group ``numbers`` says."""
        self._held.append((records, numbers.astype(np.uint16)))
        self._count += len(records)
        if self._count >= self._most:
            self._flush()

    def _flush(self) -> None:
        records = np.concatenate([held for held, _ in self._held])
        numbers = np.concatenate([numbers for _, numbers in self._held])
        self._held, self._count = [], 0
        sizes = np.bincount(numbers, minlength=self._groups)
        self._table.append(np.concatenate(([0], np.cumsum(sizes))) + self._written)
        for _, chosen in grouped(numbers):
            self._handle.write(records[chosen].tobytes())
        self._written += len(records)

    def finish(self) -> None:
        """All records were added: write the rest and the table."""
        if self._held:
            self._flush()
        self._handle.write(np.array(self._table, dtype="<u8").tobytes())
        self._handle.write(np.array([len(self._table)], dtype="<u8").tobytes())


class GroupedFile:
    """Reads what a ``GroupedWriter`` wrote."""

    def __init__(self, path: Path, dtype: np.dtype, groups: int) -> None:
        self._path, self._dtype = path, dtype
        try:
            items = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}", _AGAIN) from error
        runs = int(self._at(items - 8, 1)[0]) if items >= 8 else -1
        table_bytes = 8 * runs * (groups + 1)
        if not 0 <= table_bytes <= items - 8:
            raise _not_whole(path)
        self._table = self._at(items - 8 - table_bytes, runs * (groups + 1)).reshape(runs, groups + 1).astype(np.int64)
        records = self._table[-1, -1] if runs else 0
        if records * dtype.itemsize != items - 8 - table_bytes:
            raise _not_whole(path)

    def _at(self, offset: int, count: int) -> np.ndarray:
        return np.fromfile(self._path, dtype="<u8", count=count, offset=offset)

    def size(self, group: int) -> int:
        """Records of a group."""
        return int((self._table[:, group + 1] - self._table[:, group]).sum())

    def read(self, group: int) -> np.ndarray:
        """All records of a group, in the order in which they were added."""
        pieces = [np.zeros(0, dtype=self._dtype)]
        for run in self._table:
            if count := int(run[group + 1] - run[group]):
                pieces.append(load(self._path, self._dtype, first=int(run[group]), count=count))
        return np.concatenate(pieces)


def partition_of(keys: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` partitions each well mixed uint64 belongs to, by its upper half."""
    return ((keys >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)


def passes_needed(records: int, bytes_a_record: int, memory_bytes: int) -> int:
    """How many times a partition is read, each time for a range of its keys, so that a range fits into the memory."""
    return max(1, -(-records * bytes_a_record // max(1, memory_bytes)))


def of_pass(keys: np.ndarray, number: int, passes: int) -> np.ndarray:
    """Which keys belong to a pass, by their lower half."""
    lower = keys & np.uint64(0xFFFFFFFF)
    return (lower * np.uint64(passes)) >> np.uint64(32) == np.uint64(number)
