"""The documents of a source in random order, in parts that any process can read by itself: the buckets of a shuffle.

The stages ``count`` and ``scatter`` make them (``scatter_stages``); a part is a bucket, and the parts one after another
are what ``ShuffledSource`` gives: the same documents in the same order, with the numbers that they have in the source.
Which units they come in is another matter.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents.parts import Part
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, Source
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.jobs.job import Report
from automodel_cli.corpus.jobs.stage_folders import StageFolders
from automodel_cli.corpus.shuffle.bucket_reader import BucketSorter
from automodel_cli.corpus.shuffle.buckets import JOB_NAME, NUMBERS_NAME, Buckets, KeyRange
from automodel_cli.corpus.shuffle.rows import RowOptions
from automodel_cli.corpus.shuffle.scatter import NUMBER_FIELDS, ScatterTask
from automodel_cli.corpus.shuffle.scatter_stages import ScatterStages
from automodel_cli.corpus.shuffle.shuffled_source import read_numbers, shuffled_unit
from automodel_cli.files import TEMP_SUFFIX, disk_errors_named


class ShuffledParts:
    """``source`` in ``count`` buckets, which lie in ``folder``; ``parts`` are those of the source."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        parts: tuple[Part, ...],
        count: int,
        *,
        seed: int,
        memory_bytes: int,
        strict: bool,
    ) -> None:
        self._source, self._folder, self._memory_bytes = source, folder / JOB_NAME, memory_bytes
        self._buckets = Buckets(self._folder, seed, count, NUMBER_FIELDS)
        task = ScatterTask(self._buckets, RowOptions(source.options, check=True))
        self._stages = ScatterStages(
            StageFolders(self._folder), source, task, parts, memory_bytes=memory_bytes, strict=strict
        )

    def begin(self) -> None:
        """Make the folder."""
        with disk_errors_named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, stage: str, task: int) -> bool:
        """As ``Job``, for the stages before the parts are there."""
        return self._stages.is_done(stage, task)

    def run_task(self, stage: str, task: int, report: Report) -> None:
        """As ``Job``."""
        if not self.is_done(stage, task):
            self._stages.run_task(stage, task, report)

    def bad_rows(self) -> BadRows:
        """Rows that no reader could use; they are in no part."""
        return self._stages.bad_rows()

    def units(self, part: int, chunk_documents: int) -> Iterator[Unit]:
        """The documents of one part.

        Raises:
            DataError: its files are gone or not whole.
            AutomodelError: the disk is full.
        """
        name, keys = self._buckets.names()[part], KeyRange().divided(self._buckets.count)[part]
        own = Path(tempfile.mkdtemp(prefix=f"{part:05d}.", suffix=TEMP_SUFFIX, dir=self._divisions))
        most_bytes = chunk_documents * BYTES_PER_DOCUMENT
        sorter = BucketSorter(self._buckets, own, self._memory_bytes, group_bytes=most_bytes)
        try:
            for rows in sorter.read(name, keys, self._stages.segments(part)):
                yield shuffled_unit(rows, self._source.name, self._numbers)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    @functools.cached_property
    def _divisions(self) -> Path:
        """Where buckets that are too large for the memory are divided."""
        folder = self._folder / "units"
        folder.mkdir(exist_ok=True)
        return folder

    @functools.cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """First places of all units that were scattered, ascending, and the documents before each."""
        documents, places, before = 0, [], []
        for task, report in enumerate(self._stages.reports()):
            path = self._stages.folders.path("scatter", task) / NUMBERS_NAME
            first, numbers = read_numbers(path)
            places.append(first)
            before.append(numbers + np.uint64(documents))
            documents += report.documents
        return np.concatenate(places), np.concatenate(before)
