"""The first stages of a shuffle as a job: every row of a source into its bucket, by tasks that each read one part.

1. ``count``: how many rows a part has of a file that goes on in the next one. A row's place, hence its key, is its
   number in its file, so a part must know what comes before it; of parquet files the footer says it
2. ``scatter``: the rows of a part, in runs by bucket (``runs``), and what was counted

| file of a scatter task | content                                                                             |
|------------------------|-------------------------------------------------------------------------------------|
| buckets.*              | records and rows by bucket                                                          |
| digests.*              | of rows that are to be compared: digest and place, by range of the digest           |
| numbers.bin            | for each unit: the place of its first row, and the documents before it in the part  |
| report.json            | documents, bytes of input, bad rows                                                 |

How the source is cut decides nothing else: places, keys and rows are those of a run in one process.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from automodel_cli.corpus.build.pipeline import FIRST_BAD_ROWS, BadRows
from automodel_cli.corpus.documents.parts import Part, part_units
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource, Source
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.jobs.stage_folders import StageFolders
from automodel_cli.corpus.shuffle.bucket_reader import Segment
from automodel_cli.corpus.shuffle.buckets import NUMBERS_NAME, Buckets, KeyRange
from automodel_cli.corpus.shuffle.duplicates import digests_of
from automodel_cli.corpus.shuffle.rows import count_rows
from automodel_cli.corpus.shuffle.runs import RunWriter, segments
from automodel_cli.corpus.shuffle.scatter import Scatterer, ScatterTask, block_bytes, numbered
from automodel_cli.corpus.shuffle.splitting import document_places
from automodel_cli.files import write_json
from automodel_cli.json_files import Count, FileModel, Items, read_model

REPORT_NAME = "report.json"
ROWS_NAME, DIGESTS_NAME = "buckets", "digests"


class _Counted(FileModel):
    """``report.json`` of a ``count`` task."""

    rows: Count


class Scattered(FileModel):
    """``report.json`` of a ``scatter`` task."""

    documents: Count
    text_bytes: Count
    bad_rows: Count
    first_bad: Annotated[Items[str], Field(max_length=FIRST_BAD_ROWS)]


@dataclass(frozen=True)
class ScatterStages:
    """See above; ``digest_ranges`` is 0 where no rows are compared."""

    folders: StageFolders
    source: Source
    scatter: ScatterTask
    parts: tuple[Part, ...]
    memory_bytes: int
    strict: bool
    digest_ranges: int = 0

    NAMES = ("count", "scatter")

    @property
    def buckets(self) -> Buckets:
        """Seed, number and record."""
        return self.scatter.buckets

    def is_done(self, stage: str, task: int) -> bool:
        """As ``Job``: a part that ends with a file, or in one of parquet, need not be counted."""
        return self.folders.is_done(stage, task) or (stage == "count" and not self._is_counted(self.parts[task]))

    def run_task(self, stage: str, task: int, report: Report) -> None:
        """As ``Job``."""
        if stage == "count":
            self._count(task)
        else:
            self._scatter(task, report)

    # -------------------------------------------------------------------------------------- count

    def _kind(self, file: int) -> str:
        return self.source.files[file].kind if isinstance(self.source, FileSource) else ""

    def _is_counted(self, part: Part) -> bool:
        return part.stop_at > 0 and self._kind(part.stop_file) != "parquet"

    def _units(self, part: Part) -> Iterator[Unit]:
        block = block_bytes(self.scatter, self.source, self.memory_bytes, 1)
        return part_units(self.source, part, max(1, block // BYTES_PER_DOCUMENT))

    def _count(self, task: int) -> None:
        part = self.parts[task]
        begin = part.at if part.file == part.stop_file else 0
        last = Part(part.stop_file, begin, part.stop_file, part.stop_at, 0)
        rows = sum(count_rows(unit, self.source.options) for unit in self._units(last))
        with self.folders.making("count", task) as folder:
            write_json(folder / REPORT_NAME, {"rows": rows})

    def _rows_before(self, task: int) -> int:
        """Rows of a part's first file that earlier parts have."""
        part = self.parts[task]
        if not part.at:
            return 0
        if isinstance(self.source, FileSource) and self._kind(part.file) == "parquet":
            from automodel_cli.corpus.documents import columns  # pyarrow, which other files do not need

            file = self.source.files[part.file]
            groups = columns.inspect_parquet(file.path, file.name, self.source.options)
            return sum(group.rows for group in groups[: part.at])
        rows = 0
        while task and (before := self.parts[task - 1]).stop_file == part.file and before.stop_at:
            task -= 1
            rows += read_model(self.folders.path("count", task) / REPORT_NAME, _Counted).rows
        return rows

    # ------------------------------------------------------------------------------------ scatter

    def _scatter(self, task: int, report: Report) -> None:
        rows_before, bad_rows = self._rows_before(task), BadRows(self.strict)
        numbers, documents, read_bytes = array("Q"), 0, 0
        with self.folders.making("scatter", task) as folder:
            writer = _PartWriter(folder, self.buckets, self.digest_ranges)
            scatterer = Scatterer(self.scatter, writer=writer)
            units = numbered(self._units(self.parts[task]), lambda _: scatterer.last_rows, rows_before)
            for unit in units:
                found = scatterer(unit)
                bad_rows.add(unit, unit.first_row, found.bad)
                if found.documents:
                    numbers.extend((int(document_places(unit, unit.first_row, 0)), documents))
                documents, read_bytes = documents + found.documents, read_bytes + unit.size
                report(TaskReport(documents, 0, read_bytes, bad_rows.count))
            writer.close()
            (folder / NUMBERS_NAME).write_bytes(numbers)
            counts = {"documents": documents, "text_bytes": read_bytes}
            bad = {"bad_rows": bad_rows.count, "first_bad": bad_rows.first}
            write_json(folder / REPORT_NAME, counts | bad)

    def reports(self) -> list[Scattered]:
        """What every part held."""
        return [
            read_model(self.folders.path("scatter", task) / REPORT_NAME, Scattered) for task in range(len(self.parts))
        ]

    def bad_rows(self) -> BadRows:
        """Those of all parts, in the order of the source."""
        found = self.reports()
        first = [line for report in found for line in report.first_bad]
        return BadRows(self.strict, sum(report.bad_rows for report in found), first[:FIRST_BAD_ROWS])

    def segments(self, bucket: int) -> list[Segment]:
        """Where the rows of a bucket are."""
        return self._stored(ROWS_NAME, self.buckets.count, bucket)

    def digests(self, number: int) -> list[Segment]:
        """Where the digests of a range are."""
        return self._stored(DIGESTS_NAME, self.digest_ranges, number)

    def _stored(self, name: str, count: int, number: int) -> list[Segment]:
        folders = [self.folders.path("scatter", task) for task in range(len(self.parts))]
        return [segment for folder in folders for segment in segments(folder, name, count, number)]

    def remove_rows(self) -> None:
        """Give the disk space back: the rows are elsewhere. What was counted stays."""
        for task in range(len(self.parts)):
            for name in (ROWS_NAME, DIGESTS_NAME):
                for path in self.folders.path("scatter", task).glob(f"{name}.*"):
                    path.unlink(missing_ok=True)


class _PartWriter:
    """The runs of one part."""

    def __init__(self, folder: Path, buckets: Buckets, digest_ranges: int) -> None:
        self._buckets, self._digest_ranges = buckets, digest_ranges
        self._rows = RunWriter(folder, ROWS_NAME, buckets.count)
        self._digests = RunWriter(folder, DIGESTS_NAME, digest_ranges) if digest_ranges else None

    def scatter(self, data: np.ndarray, records: np.ndarray) -> None:
        """As ``scatter.Writer``."""
        if not len(records):
            return
        self._rows.add(self._buckets.bucket_of(records["place"]), records, data)
        if self._digests is not None:
            digests = digests_of(records)
            self._digests.add(KeyRange().range_of(digests["high"], self._digest_ranges), digests)

    def close(self) -> None:
        """All rows are here."""
        self._rows.close()
        if self._digests is not None:
            self._digests.close()
