"""The documents of a source in random order, as a source: the shuffle of every format, before the tokenizer.

It takes the place of the source it is made of, in front of the pipeline:

    source = ShuffledSource(source, folder / ".shuffle", seed=seed, memory_bytes=memory, num_workers=workers)
    source.gather(bad_rows, progress)         # phase "gather": every row into buckets on disk, durably
    for unit in source.units(cursor, size):   # phase "write": lines of JSON in order, from any cursor on
        ...
    source.remove()                           # when the output is complete, and after an error that ends it

Rows that no reader could use are met, named and left out while gathering; they do not come again. A process that
finds the buckets of an earlier one (its journal says so) calls ``units`` straight away. The order is that of
`preprocess shuffle` with the same seed. Each unit brings the numbers that its documents have in the source, by which
a document is chosen for validation, so that those are the same documents as without a shuffle.

Such a number is the count of documents before the document's unit (``numbers.bin``: for each unit of the source the
place of its first row and that count, u64) plus the document's number in the unit, which its record has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.build.disk_space import expected_size
from automodel_cli.corpus.build.pipeline import BadRows, Progress
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource, Source
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.shuffle.bucket_reader import BucketReader
from automodel_cli.corpus.shuffle.buckets import (
    GATHERED_NAME,
    NUMBERS_NAME,
    WORK_FILES,
    Buckets,
    bucket_count,
)
from automodel_cli.corpus.shuffle.rows import RowOptions
from automodel_cli.corpus.shuffle.scatter import LIKELY_ROW_BYTES, NUMBER_FIELDS, ScatterTask, scatter_all
from automodel_cli.errors import DataError
from automodel_cli.files import disk_errors_named, publish, remove_known

_LONG_BYTES = 16 << 20  # a row that is longer is handed on alone
_UNKNOWN_BYTES = 40 << 30  # of a stream: too many buckets cost little, too large ones are divided


class ShuffledSource:
    """``source`` in the order of its documents' keys; temporary files are in ``folder``, which is ours alone."""

    def __init__(self, source: Source, folder: Path, *, seed: int, memory_bytes: int, num_workers: int) -> None:
        self._source, self._folder, self._seed = source, folder, seed
        self._gathered = folder / GATHERED_NAME
        self._memory_bytes, self._num_workers = memory_bytes, num_workers
        self.name, self.note, self.options = source.name, source.note, source.options
        self.total_bytes: int | None = None
        if isinstance(source, FileSource):
            self.total_bytes = expected_size(source.files, source.options).bytes

    def gather(self, bad_rows: BadRows, progress: Callable[[Progress], None]) -> None:
        """Scatter all rows, durably.

        Raises:
            DataError: a file cannot be read, or in strict mode a row is bad.
            AutomodelError: the disk is full.
        """
        size = self.total_bytes or _UNKNOWN_BYTES
        count = bucket_count(size, size // LIKELY_ROW_BYTES, self._memory_bytes)
        self.remove()
        buckets = Buckets.below(self._folder, self._seed, count, NUMBER_FIELDS)
        task = ScatterTask(buckets, RowOptions(self.options, check=True))
        amounts = {"memory_bytes": self._memory_bytes, "num_workers": self._num_workers}
        numbers = scatter_all(task, self._source, bad_rows, progress, **amounts)
        with disk_errors_named(buckets.folder):
            (buckets.folder / NUMBERS_NAME).write_bytes(numbers)
        buckets.sync()
        publish(buckets.folder, self._gathered)

    def units(self, cursor: dict[str, Any] | None, chunk_documents: int) -> Iterator[Unit]:
        """The rows from ``cursor`` on. Where a unit ends depends on the memory, what it begins with does not.

        Raises:
            DataError: the buckets are gone or not whole.
        """
        most_bytes = chunk_documents * BYTES_PER_DOCUMENT
        buckets = Buckets.open(self._gathered)
        reader = BucketReader(buckets, self._memory_bytes, keep=True, group_bytes=most_bytes)
        numbers = _read_numbers(self._gathered / NUMBERS_NAME) if buckets.more_fields else None
        for rows in reader.read(cursor["key"] if cursor else 0):
            payload = rows.data.tobytes()
            yield Unit(
                "jsonl",
                self.name,
                0,
                {"key": rows.key},
                start=1,
                payload=payload,
                size=len(payload),
                alone=len(rows.records) == 1 and len(payload) > _LONG_BYTES,
                measured=True,
                through=rows.key / 2**64,  # keys are hashes: as good as evenly spread
                ordinals=None if numbers is None else _ordinals(rows.records, *numbers),
            )
            del payload

    def remove(self) -> None:
        """Give the disk space back."""
        remove_known(self._folder, WORK_FILES)

    def describe(self) -> dict[str, Any]:
        """As the source itself; that its order is another is for the options to say."""
        return self._source.describe()

    def identity(self) -> str:
        """As the source itself."""
        return self._source.identity()


def _read_numbers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """First places of units, ascending, and the documents before each.

    Raises:
        DataError: there is no such file, or a piece of one.
    """
    try:
        table = np.fromfile(path, dtype="<u8").reshape(-1, 2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not whole: {error}", "start over with --overwrite") from error
    return table[:, 0].copy(), table[:, 1].copy()


def _ordinals(records: np.ndarray, first_places: np.ndarray, before: np.ndarray) -> np.ndarray:
    unit = np.searchsorted(first_places, records["place"], side="right") - 1
    return (before[unit] + records["ordinal"]).astype(np.int64)
