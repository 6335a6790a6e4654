"""Rows whose text came before in the source, found by the 128-bit hashes of their records, in bounded memory.

1. the records of all buckets are divided by hash into ``digests/NNNN.bin``: equal texts come together
2. each of these is read some at a time, keeping the first place of every text seen so far; the others are dropped
3. the places dropped are divided by the bucket of their rows: ``digests/NNNN.dropped``

Among 10^10 different texts the chance that any two share a hash is about 10^-19.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from automodel_cli.corpus.shuffle.buckets import AppendedFiles, Buckets, KeyRange, grouped, iter_array
from automodel_cli.corpus.shuffle.splitting import shuffle_keys
from automodel_cli.errors import DataError
from automodel_cli.files import disk_errors_named

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
PLACE = np.dtype("<u8")
SORT_BYTES = 128  # memory that a record takes while it is sorted
_MAX_FILES = 4096


class Duplicates:
    """Finds the rows of ``buckets`` (whose records carry digests) that repeat an earlier text."""

    def __init__(self, buckets: Buckets, memory_bytes: int) -> None:
        self._buckets = buckets
        self._folder = buckets.folder / "digests"
        self._files = AppendedFiles(self._folder)
        self._rows_at_once = max(1, memory_bytes // 4 // SORT_BYTES)
        self.count = 0

    def find(self, on_progress: Callable[[int], None] = lambda rows: None) -> int:
        """How many there are; ``on_progress`` is called with the number of records that were looked at so far.

        Raises:
            DataError: a record is missing.
            AutomodelError: the disk is full.
        """
        rows, _ = self._buckets.stored()
        with disk_errors_named(self._folder):
            self._folder.mkdir()
        count = min(_MAX_FILES, -(-rows // self._rows_at_once))
        self._divide(count)
        looked_at = 0
        for number in range(count):
            path = self._folder / f"{number:04d}.bin"
            if path.exists():
                looked_at += self._search(path)
                path.unlink()
                on_progress(looked_at)
        self._files.close()
        if looked_at != rows:
            raise DataError(f"{self._folder} holds {looked_at:,} of {rows:,} records", "run again")
        return self.count

    def _divide(self, count: int) -> None:
        for records in self._buckets.iter_records(self._rows_at_once):
            digests = digests_of(records)
            numbers = KeyRange().range_of(digests["high"], count)
            self._append(digests, numbers, "bin")

    def _search(self, path: Path) -> int:
        """Drop all but the first of each text in a file; how many records it had."""
        rows = 0
        for looked_at, dropped in later_ones(iter_array(path, RECORD, self._rows_at_once)):
            rows += looked_at
            self.count += len(dropped)
            self._append(dropped, self._buckets.bucket_of(dropped), "dropped")
        return rows

    def _append(self, array: np.ndarray, numbers: np.ndarray, suffix: str) -> None:
        """Each item to the file of its number."""
        for number, chosen in grouped(numbers):
            self._files.append(f"{number:04d}.{suffix}", array[chosen])

    def dropped(self, number: int) -> np.ndarray:
        """The places to leave out of bucket ``number``."""
        path = self._folder / f"{number:04d}.dropped"
        return np.fromfile(path, dtype=PLACE) if path.exists() else np.zeros(0, dtype=PLACE)

    def count_below(self, key: int) -> int:
        """How many dropped rows have a key below ``key``."""
        below = 0
        for path in self._folder.glob("*.dropped"):
            for places in iter_array(path, PLACE, self._rows_at_once):
                below += int(np.count_nonzero(shuffle_keys(self._buckets.seed, places) < np.uint64(key)))
        return below


def digests_of(records: np.ndarray) -> np.ndarray:
    """What is compared (``RECORD``) of rows' records that have it."""
    digests = np.empty(len(records), dtype=RECORD)
    for name in RECORD.names or ():
        digests[name] = records[name]
    return digests


def later_ones(pieces: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """For each piece (``RECORD``) its number of records, and the places that are known from then on to be repeated.

    All records with one digest are in these pieces, in any order; what is kept in memory is one of each.
    """
    kept = np.zeros(0, dtype=RECORD)
    for records in pieces:
        kept, dropped = first_of_each(np.concatenate((kept, records)))
        yield len(records), dropped


def first_of_each(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The record with the smallest place of each digest, and the places of the others."""
    records = records[np.argsort(records["high"])]
    same = records["high"][1:] == records["high"][:-1]
    if not same.any():
        return records, np.zeros(0, dtype=PLACE)
    in_run = np.zeros(len(records), dtype=bool)
    in_run[1:] |= same
    in_run[:-1] |= same
    alike = records[in_run]
    alike = alike[np.lexsort((alike["place"], alike["low"], alike["high"]))]
    again = np.zeros(len(alike), dtype=bool)
    again[1:] = (alike["high"][1:] == alike["high"][:-1]) & (alike["low"][1:] == alike["low"][:-1])
    return np.concatenate((records[~in_run], alike[~again])), alike["place"][again]
