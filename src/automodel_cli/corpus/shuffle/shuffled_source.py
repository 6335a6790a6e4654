"""The documents of local files in random order, as a source: for who shuffles text instead of tokens.

It takes the place of the source it is made of, in front of any pipeline:

    source = ShuffledSource(source, folder / ".shuffle", seed=seed, memory_bytes=memory, num_workers=workers)
    source.gather(bad_rows, tell)             # phase "gather": every row into buckets on disk, durably
    for unit in source.units(cursor, size):   # phase "write": lines of JSON in order, from any cursor on
        ...
    source.remove()                           # when the output is complete, and after an error that ends it

Rows that no reader could use are met, named and left out while gathering; they do not come again. A process that
finds the buckets of an earlier one (its journal says so) calls ``units`` straight away. The order is that of
`preprocess shuffle`, and of `preprocess nanogpt --shuffle`, with the same seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from automodel_cli.corpus.build.disk_space import expected_size
from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.shuffle.buckets import WORK_FILES, BucketReader, Buckets, bucket_count
from automodel_cli.corpus.shuffle.rows import RowOptions
from automodel_cli.corpus.shuffle.scatter import LIKELY_ROW_BYTES, ScatterTask, block_bytes, scattering
from automodel_cli.files import disk_errors_named, publish, remove_known

_LONG_BYTES = 16 << 20  # a row that is longer is handed on alone


class ShuffledSource:
    """``source`` in the order of its documents' keys; temporary files are in ``folder``, which is ours alone."""

    def __init__(
        self, source: FileSource, folder: Path, *, seed: int, memory_bytes: int, num_workers: int
    ) -> None:
        self._source, self._folder, self._seed = source, folder, seed
        self._gathered = folder / "gathered"  # is there when all rows are
        self._memory_bytes, self._num_workers = memory_bytes, num_workers
        self.name, self.note, self.options = source.name, source.note, source.options
        self.total_bytes: int | None = expected_size(source.files, source.options).bytes

    def gather(self, bad_rows: BadRows, tell: Callable[[int, int, float | None], None]) -> None:
        """All rows into buckets; ``tell`` hears of the documents and bytes of each step and of ``Unit.through``.

        Raises:
            DataError: a file cannot be read, or in strict mode a row is bad.
            AutomodelError: the disk is full.
        """
        size = self.total_bytes or 0
        count = bucket_count(size, size // LIKELY_ROW_BYTES, self._memory_bytes)
        self.remove()
        with disk_errors_named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # A new one each time: a worker that outlives its killed parent by a moment finds no place to write to.
            folder = Path(tempfile.mkdtemp(prefix="buckets-", dir=self._folder))
        buckets = Buckets(folder, self._seed, count)
        buckets.create()
        task = ScatterTask(buckets, RowOptions(self.options, check=True))
        block = block_bytes(count, self._memory_bytes, self._num_workers, task.options, self._source.files)
        units = self._source.units(None, block // BYTES_PER_DOCUMENT)
        with scattering(task, units, num_workers=self._num_workers) as scattered:
            for unit, found in scattered:
                bad_rows.add(unit, unit.first_row, found.bad)
                tell(found.documents, unit.size, unit.through)
        buckets.sync()
        publish(folder, self._gathered)

    def units(self, cursor: dict[str, Any] | None, chunk_documents: int) -> Iterator[Unit]:
        """The rows from ``cursor`` on. Where a unit ends depends on the memory, what it begins with does not.

        Raises:
            DataError: the buckets are gone or not whole.
        """
        most_bytes = chunk_documents * BYTES_PER_DOCUMENT
        buckets = Buckets.open(self._gathered)
        reader = BucketReader(buckets, self._memory_bytes, keep=True, group_bytes=most_bytes)
        for rows in reader.read(cursor["key"] if cursor else 0):
            payload = rows.data.tobytes()
            position = {"key": rows.key}
            alone = len(rows.records) == 1 and len(payload) > _LONG_BYTES
            yield Unit(
                "jsonl",
                self.name,
                0,
                position,
                start=1,
                payload=payload,
                size=len(payload),
                alone=alone,
                measured=True,
                through=rows.key / 2**64,  # keys are hashes: as good as evenly spread
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
