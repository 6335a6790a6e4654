"""Stage ``write``: the documents that stay, read again from the source, in files; and what the report says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import xxhash

from automodel_cli.corpus.dedup.clusters import (
    COPY_STATE,
    FIRST_RULE,
    KEPT,
    NEAR_STATE,
    Clusters,
    FilePlan,
    Numbering,
    read_clusters,
)
from automodel_cli.corpus.dedup.near import Comparison
from automodel_cli.corpus.dedup.plan import Cutting, DedupSpec
from automodel_cli.corpus.dedup.reading import rows_of_part
from automodel_cli.corpus.dedup.work import load, published
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.shuffle.packed_rows import Rows
from automodel_cli.corpus.shuffle.rows import RowBlock
from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, Items, Xxh3, read_model

BINS = 20  # of the histogram of similarities
EXCERPT_CHARACTERS = 1500
_MOST_SOURCES = 500  # named in the report; of more files their folders are


class Excerpt(FileModel):
    """A document that the report shows; ``similarity`` to the one that stays in its place."""

    source: str
    text: str
    similarity: float | None


class WriteSummary(FileModel):
    """What a file holds, and what became of the documents it was chosen from.

    Attributes:
        sources: by source: documents, kept, copies, near-duplicates, left out by filters.
        similarities: of near-duplicates to the document that stays, in ``BINS`` equal ranges from 0 to 1.
        excerpts: of documents by their number.
    """

    documents: Count
    bytes: Count
    xxh3: Xxh3
    sources: dict[str, Items[Count]]
    similarities: Items[Count]
    excerpts: dict[str, Excerpt]


def read_write_summary(spec: DedupSpec, file: int) -> WriteSummary:
    """The summary of one file."""
    return read_model(spec.work.path("write", file, "json"), WriteSummary, hint="run again with --overwrite")


def write_file(spec: DedupSpec, source: FileSource, cutting: Cutting, file: int, report: Report) -> None:
    """Do the task of one file.

    Raises:
        DataError: the source changed, or a file of an earlier stage is not whole.
        AutomodelError: the disk is full.
    """
    clusters, numbering = read_clusters(spec), Numbering.of(spec, cutting)
    plan, told = clusters.files[file], _Told(spec, source, clusters, numbering)
    digest, documents, size = xxhash.xxh3_64(), 0, 0
    with published(spec.work.path("write", file, "jsonl")) as handle:
        for numbers, unit, block in _blocks(spec, source, cutting, numbering, plan):
            inside = np.flatnonzero((numbers >= plan.first) & (numbers < plan.stop))
            states = told.add(numbers[inside], unit, block, inside)
            kept = inside[states == KEPT]
            data = Rows(block.data, block.lengths).take(kept) if len(kept) else block.data[:0]
            handle.write(data.data)
            digest.update(data.data)
            documents, size = documents + len(kept), size + len(data)
            report(TaskReport(documents=documents, text_bytes=size))
    if (documents, size) != (plan.documents, plan.bytes):
        raise DataError(f"{spec.dataset} changed while it was read", "run again with --overwrite")
    counts = {"documents": documents, "bytes": size, "xxh3": f"xxh3:{digest.hexdigest()}"}
    with published(spec.work.path("write", file, "json")) as handle:
        handle.write(json.dumps(counts | told.summary(), ensure_ascii=False).encode())


def _blocks(
    spec: DedupSpec, source: FileSource, cutting: Cutting, numbering: Numbering, plan: FilePlan
) -> Iterator[tuple[np.ndarray, Unit, RowBlock]]:
    """The blocks that hold documents ``plan.first`` to ``plan.stop``, with the numbers of their documents."""
    first = int(np.searchsorted(numbering.starts, plan.first, side="right")) - 1
    for part in range(first, len(cutting.parts)):
        number = int(numbering.starts[part])
        if number >= plan.stop:
            return
        for unit, block in rows_of_part(spec, source, cutting, part):
            numbers = number + np.arange(len(block.lengths))
            number += len(block.lengths)
            if number > plan.first and len(numbers):
                yield numbers, unit, block
            if number >= plan.stop:
                return


def source_names(source: FileSource) -> list[str]:
    """For each file what the report calls it: its name, or its folder where there are many files."""
    names = [file.name for file in source.files]
    if len(names) <= _MOST_SOURCES:
        return names
    folders = [str(PurePosixPath(name).parent) for name in names]
    return folders if len(set(folders)) <= _MOST_SOURCES else ["all files"] * len(names)


@dataclass
class _Told:
    """What is said of the documents that one file was chosen from."""

    spec: DedupSpec
    source: FileSource
    clusters: Clusters
    numbering: Numbering
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    excerpts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = source_names(self.source)
        self._similarities = np.zeros(BINS, dtype=np.int64)
        wanted = [number for one in self.clusters.largest for number in (one.kept, *one.others)]
        self._wanted = np.unique(np.array(wanted, dtype=np.int64))
        near = self.spec.near
        self._compare = Comparison(self.spec.work, near, self.spec.memory_bytes // 4) if near else None

    def add(self, numbers: np.ndarray, unit: Unit, block: RowBlock, inside: np.ndarray) -> np.ndarray:
        """Take in documents ``numbers`` (in the block at ``inside``); the state of each."""
        if not len(numbers):
            return np.zeros(0, dtype=np.uint8)
        span = {"first": int(numbers[0]), "count": len(numbers)}
        states = load(self.spec.work.states, np.uint8, **span)
        self._count(unit, block.numbers[inside], states)
        parents = load(self.spec.work.parents, "<i8", **span)
        similar = np.full(len(numbers), np.nan)
        near = np.flatnonzero(states == NEAR_STATE)
        if self._compare is not None and len(near):
            places = self.numbering.places
            similar[near] = self._compare.similarities(places(parents[near]), places(numbers[near]))
            bins = np.minimum((similar[near] * BINS + 1e-9).astype(np.int64), BINS - 1)
            self._similarities += np.bincount(bins, minlength=BINS)
        for k in np.flatnonzero(np.isin(numbers, self._wanted)).tolist():
            self._excerpt(int(numbers[k]), unit, block, int(inside[k]), int(states[k]), float(similar[k]))
        return states

    def _count(self, unit: Unit, rows: np.ndarray, states: np.ndarray) -> None:
        files = unit.file + rows if unit.kind == "files" else np.full(len(rows), unit.file)
        kinds = np.minimum(states, FIRST_RULE)
        for file in np.unique(files).tolist():
            counts = self.counts.setdefault(self._names[file], np.zeros(5, dtype=np.int64))
            found = np.bincount(kinds[files == file], minlength=FIRST_RULE + 1)
            counts += np.concatenate(([found.sum()], found))

    def _excerpt(self, number: int, unit: Unit, block: RowBlock, at: int, state: int, similarity: float) -> None:
        assert block.texts is not None
        file = unit.file + int(block.numbers[at]) if unit.kind == "files" else unit.file
        self.excerpts[str(number)] = {
            "source": self.source.files[file].name,
            "text": block.texts[at][:EXCERPT_CHARACTERS],
            "similarity": {COPY_STATE: 1.0, NEAR_STATE: round(similarity, 3)}.get(state),
        }

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "sources": {name: counts.tolist() for name, counts in self.counts.items()},
            "similarities": self._similarities.tolist(),
            "excerpts": self.excerpts,
        }
