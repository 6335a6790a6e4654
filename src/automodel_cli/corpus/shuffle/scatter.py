"""First half of a shuffle of documents: every row of the source into its bucket, in this process or in several.

1. units come from the source, with the number of the first row of each (counted ahead of the workers)
2. each worker reads a unit, finds its rows and appends them to bucket files of its own
3. what comes back is only what was counted; the rows never pass between processes, unless they were compressed
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from automodel_cli.corpus.build.pipeline import BadRows, Progress
from automodel_cli.corpus.build.pool import LocalExecutor
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource, Source
from automodel_cli.corpus.documents.units import Chunk, Unit
from automodel_cli.corpus.shuffle.buckets import Buckets, BucketWriter
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader, count_rows
from automodel_cli.corpus.shuffle.splitting import document_places

DIGEST_FIELDS = (("low", "<u8"), ("high", "<u8"))
NUMBER_FIELDS = (("ordinal", "<u8"),)
LIKELY_ROW_BYTES = 1000  # a guess, only for how many buckets to make
_BUCKET_PIECE_BYTES = 64 << 10
_LEAST_BLOCK_BYTES, _USUAL_BLOCK_BYTES, _MOST_BLOCK_BYTES = 64 << 10, 2 << 20, 64 << 20
_NOTHING = np.zeros(0, dtype=np.uint8)


@dataclass
class Scattered(Chunk):
    """What a unit held; its rows are in the buckets."""

    tokens: np.ndarray = field(default_factory=lambda: _NOTHING)
    documents: int = 0


@dataclass(frozen=True)
class ScatterTask:
    """All that a worker needs to know; can be pickled."""

    buckets: Buckets
    options: RowOptions

    def open(self) -> Scatterer:
        """What takes units to the buckets."""
        return Scatterer(self)


class Writer(Protocol):
    """Where rows go."""

    def scatter(self, data: np.ndarray, records: np.ndarray) -> None:
        """Add rows: ``data`` (uint8) holds them one after another, as long as their ``records`` say."""


class Scatterer:
    """Appends the rows of units to bucket files that no other process writes to.

    With a ``thread`` that is done there, one unit behind; ``drain`` waits for it. A ``writer`` may stand in for those
    files.
    """

    def __init__(self, task: ScatterTask, thread: Executor | None = None, writer: Writer | None = None) -> None:
        self._record, self._read = task.buckets.record, RowReader(task.options)
        self._writer = writer or BucketWriter(task.buckets, str(os.getpid()))
        self._thread = thread
        self._pending: Future[None] | None = None
        self.last_rows = 0  # of the last unit

    def __call__(self, unit: Unit) -> Scattered:
        block = self._read(unit)
        self.last_rows = block.rows
        records = np.zeros(len(block.lengths), dtype=self._record)
        records["place"] = document_places(unit, unit.first_row, block.numbers)
        records["length"] = block.lengths
        if "ordinal" in self._record.fields:  # type: ignore[operator]
            records["ordinal"] = np.arange(len(records))
        if block.digests is not None:
            records["low"], records["high"] = block.digests["low"], block.digests["high"]
        self._scatter(block.data, records)
        return Scattered(rows=block.rows, bad=block.bad, text_bytes=unit.size, documents=len(records))

    def _scatter(self, data: np.ndarray, records: np.ndarray) -> None:
        if self._thread is None:
            self._writer.scatter(data, records)
        else:
            self.drain()
            self._pending = self._thread.submit(self._writer.scatter, data, records)

    def drain(self) -> None:
        """Wait until all rows are in their buckets."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def block_bytes(task: ScatterTask, source: Source, memory_bytes: int, num_workers: int) -> int:
    """Bytes of input to take at a time: a decent piece for each bucket, if all workers stay within the memory.

    A block is in memory about four times while its rows are moved, and more often while they are parsed; a row group
    of a parquet file is read whole even if it is eight blocks long (``cutting``).
    """
    kinds = {file.kind for file in source.files} if isinstance(source, FileSource) else {"parquet"}
    copies = 8 if task.options.parses or kinds != {"jsonl"} else 4
    if "parquet" in kinds:
        copies *= 2
    wanted = max(_USUAL_BLOCK_BYTES, task.buckets.count * _BUCKET_PIECE_BYTES)
    most = max(_LEAST_BLOCK_BYTES, memory_bytes // (copies * max(1, num_workers)))
    return min(wanted, most, _MOST_BLOCK_BYTES)


def numbered(units: Iterator[Unit], rows_of: Callable[[Unit], int], rows_before: int = 0) -> Iterator[Unit]:
    """The units with ``first_row``; ``rows_of`` is asked about a unit when the next one is wanted.

    ``rows_before`` of the first unit's file came before it.
    """
    file, first_row = None, rows_before
    for unit in units:
        first_row = first_row if file in (None, unit.file) else 0
        file = unit.file
        yield replace(unit, first_row=first_row)
        first_row += rows_of(unit)


def scatter_all(
    task: ScatterTask,
    source: Source,
    bad_rows: BadRows,
    progress: Callable[[Progress], None],
    *,
    memory_bytes: int,
    num_workers: int,
) -> array[int]:
    """All rows of ``source`` into the buckets; for each unit the place of its first row and the documents before.

    Raises:
        DataError: a file cannot be read, or in strict mode a row is bad.
        AutomodelError: the disk is full, or a worker died.
    """
    numbers, documents, read_bytes = array("Q"), 0, 0
    with _scattering(task, source, memory_bytes, num_workers) as scattered:
        for unit, found in scattered:
            bad_rows.add(unit, unit.first_row, found.bad)
            if found.documents:
                numbers.extend((int(document_places(unit, unit.first_row, 0)), documents))
            documents, read_bytes = documents + found.documents, read_bytes + unit.size
            counts = (documents, 0, read_bytes, bad_rows.count)
            progress(Progress("scattering", *counts, through=unit.through))
    return numbers


@contextlib.contextmanager
def _scattering(
    task: ScatterTask, source: Source, memory_bytes: int, num_workers: int
) -> Generator[Iterator[tuple[Unit, Scattered]]]:
    """Each unit with what came of it, in order; all is in the buckets when the iterator ends."""
    units = source.units(None, block_bytes(task, source, memory_bytes, num_workers) // BYTES_PER_DOCUMENT)
    if num_workers <= 1:
        with ThreadPoolExecutor(1) as thread:
            yield _in_this_process(Scatterer(task, thread), units)
        return
    units = numbered(units, lambda unit: count_rows(unit, task.options.read))
    with LocalExecutor(num_workers).map_ordered(task, units) as scattered:
        yield scattered


def _in_this_process(scatterer: Scatterer, units: Iterator[Unit]) -> Iterator[tuple[Unit, Scattered]]:
    for unit in numbered(units, lambda unit: scatterer.last_rows):
        yield unit, scatterer(unit)
    scatterer.drain()
