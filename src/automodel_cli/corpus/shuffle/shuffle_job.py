"""``preprocess shuffle`` as a job: stages of tasks that any machines run, to the bytes of a run in one process.

| stage      | a task            | what it leaves                                                                      |
|------------|-------------------|-------------------------------------------------------------------------------------|
| count      | a part of source  | rows of a file that goes on in the next part (``scatter_stages``)                   |
| scatter    | a part of source  | its rows in runs by bucket                                                          |
| duplicates | a range of digests| places of the rows whose text came before, in runs by bucket; only with ``dedup``   |
| join       | a bucket          | its rows in order, and their lengths                                                |
| divide     | all               | which pieces of the buckets each output file has; what was scattered goes           |
| assemble   | an output file    | the file, with its hash                                                             |

The plan of the job, ``plan.json``, says what was asked, and how the first process cut source and keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.build.output import difference
from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource
from automodel_cli.corpus.formats.manifest import Plan
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.jobs.stage_folders import StageFolders
from automodel_cli.corpus.shuffle.bucket_reader import BucketSorter, Segment, Slice
from automodel_cli.corpus.shuffle.buckets import JOB_NAME, WORK_FILES, Buckets, KeyRange
from automodel_cli.corpus.shuffle.document_files import Allotment, Amounts, Division, DocumentFile, OpenFile
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest, DocumentsOutput, Finished
from automodel_cli.corpus.shuffle.duplicates import PLACE, RECORD, SORT_BYTES, later_ones
from automodel_cli.corpus.shuffle.rows import RowOptions
from automodel_cli.corpus.shuffle.runs import RunWriter, arrays, segments
from automodel_cli.corpus.shuffle.scatter import ScatterTask, block_bytes
from automodel_cli.corpus.shuffle.scatter_stages import REPORT_NAME, ScatterStages
from automodel_cli.corpus.shuffle.splitting import shuffle_keys
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import fsync_folder, remove_known, temporary_of, write_json
from automodel_cli.json_files import Count, FileModel, Items, read_model

_FORMAT = "automodel-shuffle-job/1"
_DROPPED_NAME, _ROWS_NAME, _LENGTHS_NAME = "dropped", "rows", "lengths"
_LENGTH = np.dtype("<u8")
_READ_BYTES = 8 << 20
_LENGTHS_AT_ONCE = 1 << 20


class _JobPlan(FileModel):
    """``plan.json``."""

    format: str
    made: dict[str, Any]
    parts: Items[Items[Count]]
    buckets: Count
    digest_ranges: Count


class _Compared(FileModel):
    """``report.json`` of a ``duplicates`` task."""

    duplicates: Count


class _Joined(FileModel):
    """``report.json`` of a ``join`` task; ``below``: documents with keys that validate, if a fraction does."""

    documents: Count
    bytes: Count
    below: Count


class _Divided(FileModel):
    """``report.json`` of ``divide``: of each output file its documents, and pieces (bucket, start, stop)."""

    val_documents: Count
    train_documents: Count
    documents: Items[Count]
    pieces: Items[Items[Items[Count]]]


@dataclass(frozen=True, kw_only=True)
class ShuffleRequest:
    """What is asked for, in plain values.

    Attributes:
        made: what decides the bytes, as the manifest has it.
        memory_bytes: of one task.
        bucket_count, digest_ranges: for a job that begins.
    """

    made: Plan
    seed: int
    rows: RowOptions
    fields: tuple[tuple[str, str], ...]
    amounts: Amounts
    memory_bytes: int
    strict: bool
    bucket_count: int
    digest_ranges: int


class ShuffleJob:
    """See above; a ``Job``. ``work`` holds temporary files, ``output`` the documents in the end."""

    name = "documents"

    def __init__(
        self,
        source: FileSource,
        output: DocumentsOutput,
        request: ShuffleRequest,
        *,
        check_room: Callable[[], None],
        manifest_of: Callable[[Finished], DocumentsManifest],
        result_of: Callable[[DocumentsManifest, BadRows], Any],
    ) -> None:
        self._source, self._output, self._request = source, output, request
        self._check_room, self._manifest_of, self._result_of = check_room, manifest_of, result_of
        self._folders = StageFolders(output.work_folder / JOB_NAME)
        self._outcome = StageFolders(output.shuffle_folder / JOB_NAME)  # on the disk of the output
        self._plan_path = output.work_folder / JOB_NAME / "plan.json"
        compared = ("duplicates",) if request.digest_ranges else ()
        self.stages = (*ScatterStages.NAMES, *compared, "join", "divide", "assemble")

    # ----------------------------------------------------------------------------------------- plan

    def begin(self) -> None:
        """As ``Job``."""
        if not self._output.has_begun:  # what lies in --temp-dir was for a folder that somebody removed
            remove_known(self._output.work_folder, WORK_FILES)
        if self._plan_path.exists():
            _ = self._plan  # compared
            return
        self._output.clear()
        self._output.mark()
        self._check_room()
        for folder in (self._output.shuffle_folder / JOB_NAME, self._plan_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        request = self._request
        block = block_bytes(self._scatter_task(request.bucket_count), self._source, request.memory_bytes, 1)
        found = parts.find_parts(self._source, max(1, block // BYTES_PER_DOCUMENT))
        counts = {"buckets": request.bucket_count, "digest_ranges": request.digest_ranges}
        rows = [list(asdict(part).values()) for part in found]
        write_json(self._plan_path, {"format": _FORMAT, "made": self._made, "parts": rows, **counts})

    @property
    def _made(self) -> Plan:
        made = self._request.made
        return {**made, "source": {**made["source"], "identity": self._source.identity()}}

    @functools.cached_property
    def _plan(self) -> _JobPlan:
        if not self._plan_path.exists():
            raise DataError(f"{self._plan_path.parent} holds no plan: the job is finished, or nobody has begun it")
        plan = read_model(self._plan_path, _JobPlan, hint="start over with --overwrite")
        if plan.format != _FORMAT:
            raise DataError(f"{self._plan_path} has format {plan.format!r}, expected {_FORMAT!r}", "use --overwrite")
        if plan.made != self._made:
            raise ConfigError(
                f"{self._output.folder} holds an interrupted shuffle made in another way: "
                f"{difference(plan.made, self._made)}",
                "use another --output-dir, or --overwrite to start over",
            )
        return plan

    def _scatter_task(self, bucket_count: int) -> ScatterTask:
        request = self._request
        return ScatterTask(Buckets(self._plan_path.parent, request.seed, bucket_count, request.fields), request.rows)

    @functools.cached_property
    def _scatter(self) -> ScatterStages:
        plan, request = self._plan, self._request
        return ScatterStages(
            self._folders,
            self._source,
            self._scatter_task(plan.buckets),
            tuple(parts.Part(*numbers) for numbers in plan.parts),
            request.memory_bytes,
            request.strict,
            plan.digest_ranges,
        )

    @property
    def _buckets(self) -> Buckets:
        return self._scatter.buckets

    # ---------------------------------------------------------------------------------------- tasks

    def tasks(self, stage: str) -> int:
        """As ``Job``."""
        counts: dict[str, Callable[[], int]] = {
            "duplicates": lambda: self._plan.digest_ranges,
            "join": lambda: self._plan.buckets,
            "divide": lambda: 1,
            "assemble": lambda: len(self._divided.documents),
        }
        return counts[stage]() if stage in counts else len(self._plan.parts)

    def is_done(self, stage: str, task: int) -> bool:
        """As ``Job``."""
        if stage in ScatterStages.NAMES:
            return self._scatter.is_done(stage, task)
        return self._of(stage).is_done(stage, task)

    def _of(self, stage: str) -> StageFolders:
        return self._outcome if stage == "assemble" else self._folders

    def run_task(self, stage: str, task: int, report: Report) -> None:
        """As ``Job``."""
        if self.is_done(stage, task):
            return
        if stage in ScatterStages.NAMES:
            self._scatter.run_task(stage, task, report)
            return
        make = {"duplicates": self._compare, "join": self._join, "divide": self._divide, "assemble": self._assemble}
        with self._of(stage).making(stage, task) as folder:
            write_json(folder / REPORT_NAME, make[stage](task, folder, report))

    def _report(self, stage: str, task: int, model: Any) -> Any:
        return read_model(self._of(stage).path(stage, task) / REPORT_NAME, model)

    def _compare(self, task: int, folder: Path, report: Report) -> dict[str, Any]:
        rows_at_once = max(1, self._request.memory_bytes // 4 // SORT_BYTES)
        pieces = _some_at_a_time(self._scatter.digests(task), rows_at_once)
        writer = RunWriter(folder, _DROPPED_NAME, self._buckets.count)
        looked_at = count = 0
        for rows, dropped in later_ones(pieces):
            looked_at, count = looked_at + rows, count + len(dropped)
            if len(dropped):
                writer.add(self._buckets.bucket_of(dropped), dropped)
            report(TaskReport(looked_at))
        writer.close()
        return {"duplicates": count}

    def _dropped(self, bucket: int) -> np.ndarray:
        """The places to leave out of a bucket."""
        folders = [self._folders.path("duplicates", task) for task in range(self._plan.digest_ranges)]
        count = self._buckets.count
        return arrays([s for f in folders for s in segments(f, _DROPPED_NAME, count, bucket)], PLACE)

    def _join(self, task: int, folder: Path, report: Report) -> dict[str, Any]:
        buckets, below = self._buckets, np.uint64(self._request.amounts.val_below)
        sorter = BucketSorter(buckets, folder, self._request.memory_bytes)
        name, keys = buckets.names()[task], KeyRange().divided(buckets.count)[task]
        counts = {"documents": 0, "bytes": 0, "below": 0}
        dropped = self._dropped(task)
        with (folder / _ROWS_NAME).open("wb") as rows, (folder / _LENGTHS_NAME).open("wb") as lengths:
            for some in sorter.read(name, keys, self._scatter.segments(task), dropped=dropped):
                rows.write(some.data.data)
                lengths.write(some.records["length"].astype(_LENGTH).data)
                counts["documents"] += len(some.records)
                counts["bytes"] += len(some.data)
                counts["below"] += int(np.count_nonzero(shuffle_keys(buckets.seed, some.records["place"]) < below))
                report(TaskReport(counts["documents"], 0, counts["bytes"]))
        return counts

    def _divide(self, task: int, folder: Path, report: Report) -> dict[str, Any]:
        joined = [self._report("join", bucket, _Joined) for bucket in range(self._buckets.count)]
        kept, below = (sum(getattr(found, name) for found in joined) for name in ("documents", "below"))
        division = self._request.amounts.divide(kept, below, self._source.name, self._scatter.bad_rows())
        allotment = Allotment(division)
        documents: list[int] = []
        pieces: list[list[list[int]]] = []
        for bucket in range(self._buckets.count):
            position = 0
            path = self._folders.path("join", bucket) / _LENGTHS_NAME
            for lengths in Slice.whole(path).arrays(_LENGTH, _LENGTHS_AT_ONCE):
                for number, _, place in allotment.cut(lengths.astype(np.int64)):
                    if number == len(pieces):
                        documents.append(0)
                        pieces.append([])
                    documents[number] = allotment.documents
                    _extend(pieces[number], bucket, position + place.start, position + place.stop)
                position += int(lengths.sum())
        self._scatter.remove_rows()
        amounts = {"val_documents": division.val_documents, "train_documents": division.train_documents}
        return {**amounts, "documents": documents, "pieces": pieces}

    @functools.cached_property
    def _divided(self) -> _Divided:
        return self._report("divide", 0, _Divided)  # type: ignore[no-any-return]

    def _assemble(self, task: int, folder: Path, report: Report) -> dict[str, Any]:
        divided, amounts = self._divided, self._request.amounts
        division = Division(divided.val_documents, divided.train_documents, amounts.chunks, amounts.chunk_bytes)
        path = folder / division.name_of(task, self._output.name)
        file = OpenFile(path, division.split_of(task))
        try:
            for bucket, start, stop in divided.pieces[task]:
                piece = Slice(self._folders.path("join", bucket) / _ROWS_NAME, start, stop)
                for data in piece.arrays(np.dtype(np.uint8), _READ_BYTES):
                    file.write(data)
                    file.bytes += len(data)
                    report(TaskReport(text_bytes=file.bytes))
            file.documents = divided.documents[task]
            facts = file.close()
        except BaseException:
            file.abandon()
            raise
        temporary_of(path).replace(path)
        return asdict(facts)

    # --------------------------------------------------------------------------------------- finish

    def finish(self) -> Any:
        """As ``Job``."""
        output = self._output
        files = tuple(self._report("assemble", task, DocumentFile) for task in range(self.tasks("assemble")))
        for task, file in enumerate(files):
            made = self._outcome.path("assemble", task) / file.name
            if made.exists():
                made.replace(output.folder / file.name)
        fsync_folder(output.folder)
        bad_rows, duplicates = self._scatter.bad_rows(), None
        if self._plan.digest_ranges:
            found = [self._report("duplicates", task, _Compared) for task in range(self._plan.digest_ranges)]
            duplicates = sum(report.duplicates for report in found)
        documents = sum(file.documents for file in files)
        manifest = self._manifest_of(Finished(documents, duplicates, bad_rows, files))
        manifest.write()
        output.tidy()
        return self._result_of(manifest, bad_rows)


def _some_at_a_time(found: list[Segment], rows: int) -> Iterator[np.ndarray]:
    """The records (``RECORD``) of many small segments, about ``rows`` together."""
    held: list[np.ndarray] = []
    count = 0
    for segment in found:
        for records in segment.docs.arrays(RECORD, rows):
            held.append(records)
            count += len(records)
            if count >= rows:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


def _extend(pieces: list[list[int]], bucket: int, start: int, stop: int) -> None:
    """Add a piece, to the last one where it goes on there."""
    if pieces and pieces[-1][0] == bucket and pieces[-1][2] == start:
        pieces[-1][2] = stop
    else:
        pieces.append([bucket, start, stop])
