"""Duplicates left out of a source, as a job that any runner can run: see ``corpus.jobs.job`` and ``work``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.build.disk_space import expected_size
from automodel_cli.corpus.build.output import difference
from automodel_cli.corpus.build.pipeline import FIRST_BAD_ROWS
from automodel_cli.corpus.build.run import BuildResult
from automodel_cli.corpus.dedup import report as reports
from automodel_cli.corpus.dedup.clusters import Clusters, find_clusters, read_clusters
from automodel_cli.corpus.dedup.copies import find_copies
from automodel_cli.corpus.dedup.near import find_pairs, write_band_keys
from automodel_cli.corpus.dedup.output import DedupOutput
from automodel_cli.corpus.dedup.plan import Cutting, DedupSpec, read_plan
from automodel_cli.corpus.dedup.reading import PartSummary, read_part, read_summary
from automodel_cli.corpus.dedup.report_page import page
from automodel_cli.corpus.dedup.work import STAGES
from automodel_cli.corpus.dedup.writing import WriteSummary, read_write_summary, write_file
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.formats.manifest import ListedFile, size_and_hash
from automodel_cli.corpus.jobs.job import Report
from automodel_cli.corpus.shuffle.document_files import DocumentFile, chunk_name
from automodel_cli.corpus.shuffle.document_folder import REPORT_NAMES, DocumentsManifest
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import exclusive_lock, fsync_folder, write_json, write_text

_LAST = {"read": "json", "exact": "copies", "bands": "keys", "near": "pairs", "clusters": "json", "write": "json"}
"""The file that a task of each stage publishes last."""


@dataclass(frozen=True)
class DedupResult(BuildResult[DocumentsManifest]):
    """What a run left; ``report`` is None where nothing was done."""

    report: reports.DedupReport | None = None


class DedupJob:
    """See :class:`~automodel_cli.corpus.jobs.job.Job`."""

    name = "documents without duplicates"
    stages: tuple[str, ...] = STAGES

    def __init__(self, spec: DedupSpec, output: DedupOutput | None = None) -> None:
        self.spec = spec
        self.source = FileSource(spec.dataset, spec.read)
        self.output = output or DedupOutput(spec.folder, spec.name)

    @property
    def made(self) -> dict[str, Any]:
        """What decides the bytes."""
        source = {**self.source.describe(), "identity": self.source.identity()}
        return {"options": self.spec.options, "source": source}

    @functools.cached_property
    def cutting(self) -> Cutting:
        """How the plan cuts the work, if it is of this job.

        Raises:
            ConfigError: it is of another one.
        """
        path = self.spec.work.plan
        if not path.exists():
            raise DataError(f"{path.parent} holds no plan: the job is finished, or nobody has begun it")
        made, cutting = read_plan(path)
        if made != self.made:
            raise ConfigError(
                f"{self.output.place} holds an interrupted run made in another way: {difference(made, self.made)}",
                "use another --output-dir, or --overwrite to start over",
            )
        return cutting

    def begin(self) -> None:
        """Write the plan, or compare; a process that comes when all is finished begins nothing."""
        path = self.spec.work.plan
        if not path.exists() and self.is_finished:
            return
        if self.output.holds_a_shuffle:
            self.output.clear()
        self.output.mark()
        with exclusive_lock(self.spec.work.begun, busy="", wait=True):  # many may be told to begin
            if not path.exists():
                self.new_cutting().write(path, self.made)
        _ = self.cutting  # compare

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds what this job makes."""
        manifest = self.output.sound_manifest()
        asked = {"options": self.spec.options, "source": self.source.describe()}
        return manifest is not None and manifest.plan == asked

    def new_cutting(self) -> Cutting:
        """How a run that begins now would be cut."""
        size = expected_size(self.source.files, self.source.options)
        return Cutting.fitting(self.spec, self.source, size)

    def tasks(self, stage: str) -> int:
        """How many tasks a stage has; none where all was finished before this process came."""
        if not self.spec.work.plan.exists() and self.is_finished:
            return 0
        cutting, near = self.cutting, self.spec.near is not None
        counts = {
            "read": len(cutting.parts),
            "exact": cutting.exact_partitions if self.spec.exact else 0,
            "bands": len(cutting.parts) if near else 0,
            "near": cutting.near_partitions if near else 0,
            "clusters": 1,
        }
        return counts[stage] if stage in counts else len(self.clusters.files)

    @functools.cached_property
    def clusters(self) -> Clusters:
        """What the stage of that name found."""
        return read_clusters(self.spec)

    def is_done(self, stage: str, task: int) -> bool:
        """Whether the last file of the task is there."""
        return self.spec.work.path(stage, task, _LAST[stage]).exists()

    def run_task(self, stage: str, task: int, report: Report) -> None:
        """Do one task."""
        if self.is_done(stage, task):
            return
        spec, cutting = self.spec, self.cutting
        if stage == "read":
            read_part(spec, self.source, cutting, task, report)
        elif stage == "exact":
            find_copies(spec, cutting, task, report)
        elif stage == "bands":
            write_band_keys(spec, cutting, task, report)
        elif stage == "near":
            find_pairs(spec, cutting, task, report)
        elif stage == "clusters":
            find_clusters(spec, cutting, report)
        else:
            write_file(spec, self.source, cutting, task, report)

    def finish(self) -> DedupResult:
        """Give the files their names, write report and manifest, remove what was temporary."""
        spec = self.spec
        parts = [read_summary(spec.work, part) for part in range(len(self.cutting.parts))]
        written = [read_write_summary(spec, file) for file in range(len(self.clusters.files))]
        report = reports.report_of(spec, self.clusters, parts, written)
        files = [self._name_file(number, summary) for number, summary in enumerate(written)]
        write_json(spec.folder / REPORT_NAMES[0], report.body())
        write_text(spec.folder / REPORT_NAMES[1], page(report))
        fsync_folder(spec.folder)
        manifest = DocumentsManifest(
            folder=spec.folder,
            text_key=spec.read.text_key,
            documents=self.clusters.kept,
            duplicates=self.clusters.copies + self.clusters.near,
            bad_rows=report.bad_rows,
            files=tuple(files),
            left_out=report.left_out,
            reports=tuple(ListedFile(name=name, **size_and_hash(spec.folder / name)) for name in REPORT_NAMES),
            versions={"automodel": __version__},
            options=spec.options,
            source=self.source.describe(),
        )
        manifest.write()
        self.output.tidy()
        return DedupResult(spec.folder, manifest, bad_rows=first_bad_rows(parts), report=report)

    def _name_file(self, number: int, summary: WriteSummary) -> DocumentFile:
        """A file from the work folder, which an interrupted ``finish`` may have moved."""
        made = self.spec.work.path("write", number, "jsonl")
        target = self.spec.folder / chunk_name(self.spec.name, number)
        if made.exists():
            made.replace(target)
        return DocumentFile(
            name=target.name, split="train", documents=summary.documents, bytes=summary.bytes, xxh3=summary.xxh3
        )


def first_bad_rows(parts: list[PartSummary]) -> list[str]:
    """The first bad rows of the source, by file and line."""
    before: dict[int, int] = {}
    found = []
    for part in parts:
        for bad in part.first_bad:
            place = bad.name or f"{bad.source}:{before.get(bad.file, 0) + bad.row + 1}"
            found.append(f"{place}: {bad.reason}")
        for file, rows in part.rows:
            before[file] = before.get(file, 0) + rows
    return found[:FIRST_BAD_ROWS]
