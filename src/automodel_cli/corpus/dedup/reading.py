"""Stage ``read``: a part of the source to hashes of its texts, signatures, and the verdicts of the filters."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from automodel_cli.corpus.build.pipeline import FIRST_BAD_ROWS
from automodel_cli.corpus.dedup.minhash import signatures
from automodel_cli.corpus.dedup.plan import BLOCK_BYTES, DIGEST, DOCUMENT, Cutting, DedupSpec
from automodel_cli.corpus.dedup.shingles import ShingleSets, shingle
from automodel_cli.corpus.dedup.work import GroupedWriter, WorkFolder, partition_of, published
from automodel_cli.corpus.documents.parts import part_units
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.shuffle.rows import RowBlock, RowOptions, RowReader
from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, Items, read_model

FIRST_SAMPLES = 3  # of documents that a rule left out
SAMPLE_CHARACTERS = 300


class BadRowFacts(FileModel):
    """A row without usable text: ``row`` counts from 0 in what the part holds of its file."""

    file: Count
    row: Count
    name: str | None
    source: str
    reason: str


class Sample(FileModel):
    """The beginning of a document that a rule left out, and what was measured."""

    source: str
    text: str
    found: str


class PartSummary(FileModel):
    """What ``read`` says of a part.

    Attributes:
        rows: for each file of which there are any: its number and how many rows the part holds of it.
        left_out: documents that each rule left out, by its name; ``samples``: the first of them.
    """

    documents: Count
    text_bytes: Count
    bad_rows: Count
    rows: Items[Items[Count]]
    first_bad: Items[BadRowFacts]
    left_out: dict[str, Count]
    samples: dict[str, Items[Sample]]


def read_summary(work: WorkFolder, part: int) -> PartSummary:
    """The summary of one part."""
    return read_model(work.path("read", part, "json"), PartSummary, hint="run again with --overwrite")


def rows_of_part(spec: DedupSpec, source: FileSource, cutting: Cutting, part: int) -> Iterator[tuple[Unit, RowBlock]]:
    """The documents of a part, block by block, always the same ones.

    Raises:
        DataError: a file cannot be read.
    """
    read = RowReader(RowOptions(spec.read, check=True, digest=True, texts=True))
    block_bytes = max(64 << 10, min(BLOCK_BYTES, spec.memory_bytes // 64))
    for unit in part_units(source, cutting.parts[part], block_bytes // BYTES_PER_DOCUMENT):
        yield unit, read(unit)


def read_part(spec: DedupSpec, source: FileSource, cutting: Cutting, part: int, report: Report) -> None:
    """Do the task of one part.

    Raises:
        DataError: a file cannot be read, or in strict mode a row is bad.
        ConfigError: the library for signatures is missing or another one.
        AutomodelError: the disk is full.
    """
    work, found = spec.work, _Found(spec)
    with contextlib.ExitStack() as stack:

        def file(kind: str) -> IO[bytes]:
            return stack.enter_context(published(work.path("read", part, kind)))

        documents = file("documents")
        digests = GroupedWriter(file("digests"), DIGEST, cutting.exact_partitions)
        near = _NearFiles(spec, file) if spec.near is not None else None
        for unit, block in rows_of_part(spec, source, cutting, part):
            records, live = found.records(unit, block)
            documents.write(records.tobytes())
            if spec.exact:
                some = np.empty(len(live), dtype=DIGEST)
                some["low"], some["high"] = records["low"][live], records["high"][live]
                some["index"] = found.documents + live
                digests.add(some, partition_of(some["high"], cutting.exact_partitions))
            if near is not None:
                near.add(block.texts or [], records["verdict"] == 0)
            found.add(unit, block)
            report(TaskReport(found.documents, 0, found.text_bytes, found.bad))
        digests.finish()
    with published(work.path("read", part, "json")) as handle:
        handle.write(json.dumps(found.summary(), ensure_ascii=False).encode())


class _NearFiles:
    """Signatures and, where they are verified exactly, sets of shingles."""

    def __init__(self, spec: DedupSpec, file: Callable[[str], IO[bytes]]) -> None:
        assert spec.near is not None
        self._near = spec.near
        self._signatures = file("signatures")
        self._shingles = self._sets = None
        if spec.near.verification == "exact":
            self._shingles, self._sets = file("shingles"), file("sets")
            self._sets.write(np.zeros(1, dtype="<u8").tobytes())
        self._count = 0

    def add(self, texts: list[str], live: np.ndarray) -> None:
        """Of documents that filters left out nothing is computed: they count as documents without shingles."""
        sets = shingle(
            [text if is_live else "" for text, is_live in zip(texts, live, strict=True)], self._near.shingling
        )
        self._signatures.write(signatures(sets, self._near.banding.hashes).tobytes())
        if self._shingles is not None:
            self._write_sets(sets, len(texts))

    def _write_sets(self, sets: ShingleSets, documents: int) -> None:
        assert self._shingles is not None and self._sets is not None
        for number in range(documents):
            unique = sets.unique(number)
            self._count += len(unique)
            self._shingles.write(unique.tobytes())
            self._sets.write(np.array([self._count], dtype="<u8").tobytes())


@dataclass
class _Found:
    """What a part held so far."""

    spec: DedupSpec
    documents: int = 0
    text_bytes: int = 0
    bad: int = 0
    rows: Counter[int] = field(default_factory=Counter)
    first_bad: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def records(self, unit: Unit, block: RowBlock) -> tuple[np.ndarray, np.ndarray]:
        """The records of a block's documents, and the numbers of those that the filters let pass."""
        assert block.digests is not None
        records = np.zeros(len(block.lengths), dtype=DOCUMENT)
        records["low"], records["high"] = block.digests["low"], block.digests["high"]
        records["length"] = block.lengths
        if self.spec.filters is not None:
            records["verdict"] = [self._judge(unit, text) for text in block.texts or []]
        return records, np.flatnonzero(records["verdict"] == 0)

    def _judge(self, unit: Unit, text: str) -> int:
        assert self.spec.filters is not None
        verdict = self.spec.filters.judge(text)
        if verdict is None:
            return 0
        self.left_out[verdict.rule] += 1
        samples = self.samples.setdefault(verdict.rule, [])
        if len(samples) < FIRST_SAMPLES:
            samples.append({"source": unit.name, "text": text[:SAMPLE_CHARACTERS], "found": verdict.found})
        return verdict.number

    def add(self, unit: Unit, block: RowBlock) -> None:
        """Count a block.

        Raises:
            DataError: in strict mode, a row is bad.
        """
        for row in block.bad:
            if self.spec.strict:
                where = row.name or f"{unit.name}, row {row.row + 1:,} from byte {unit.start:,} on"
                raise DataError(f"bad row {where}: {row.reason}", "repair it, or go on without --strict")
            self.bad += 1
            if len(self.first_bad) < FIRST_BAD_ROWS:
                place = {"file": unit.file, "row": self.rows[unit.file] + row.row, "name": row.name}
                self.first_bad.append({**place, "source": unit.name, "reason": row.reason})
        self.rows[unit.file] += block.rows
        self.documents += len(block.lengths)
        self.text_bytes += unit.size

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "bad_rows": self.bad,
            "rows": sorted(item for item in self.rows.items() if item[1]),
            "first_bad": self.first_bad,
            "left_out": dict(sorted(self.left_out.items())),
            "samples": self.samples,
        }
