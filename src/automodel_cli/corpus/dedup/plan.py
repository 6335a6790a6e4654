"""What a run is to do, and how its work is cut; the second never changes a byte of what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from automodel_cli.corpus.build.disk_space import ExpectedSize
from automodel_cli.corpus.dedup.minhash import SIGNATURE, Banding
from automodel_cli.corpus.dedup.shingles import Shingling
from automodel_cli.corpus.dedup.work import WORK_NAME, WorkFolder
from automodel_cli.corpus.documents.parts import Part, find_parts
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.corpus.filters.rules import FilterRules
from automodel_cli.errors import DataError
from automodel_cli.files import write_json
from automodel_cli.json_files import Count, FileModel, Items, read_model

Verification = Literal["signature", "exact"]

DOCUMENT = np.dtype([("low", "<u8"), ("high", "<u8"), ("length", "<u8"), ("verdict", "u1")])
DIGEST = np.dtype([("low", "<u8"), ("high", "<u8"), ("index", "<u4")])
COPY = np.dtype([("index", "<u4"), ("first", "<u8")])
KEY = np.dtype([("key", "<u8"), ("index", "<u4")])
PAIR = np.dtype([("first", "<u8"), ("second", "<u8")])

INDEX_BITS = 40
BLOCK_BYTES = 2 << 20  # of input at a time
SORT_BYTES = {"exact": 96, "near": 80}  # memory that a record takes while a partition is worked on, measured
_DOCUMENT_BYTES = 2000  # a guess, only for how to cut the work
_LEAST_PART, _MOST_PART, _PARTS = 8 << 20, 256 << 20, 64
_MOST_PARTS, _MOST_PARTITIONS, _FEW_PARTITIONS = 60_000, 4096, 8


@dataclass(frozen=True, kw_only=True)
class Near:
    """How near-duplicates are found.

    Attributes:
        threshold: pairs at least so similar are duplicates.
        verification: by what that is decided for a pair that shares a band: the estimate of the signatures, or the
            exact similarity of the sets of shingles.
    """

    threshold: float
    shingling: Shingling
    banding: Banding
    verification: Verification = "signature"


@dataclass(frozen=True, kw_only=True)
class DedupSpec:
    """All that was asked for; can be pickled.

    Attributes:
        options: what was asked, as far as it decides the bytes, for manifest and plan.
        folder, name: where files go, and what their names begin with.
        exact: whether equal texts are duplicates.
        chunk_bytes: most bytes of a file.
        memory_bytes: for one process, besides the longest document.
    """

    dataset: str
    read: ReadOptions
    options: dict[str, Any]
    folder: Path
    name: str
    exact: bool = True
    near: Near | None = None
    filters: FilterRules | None = None
    chunk_bytes: int = 256_000_000
    memory_bytes: int = 500_000_000
    strict: bool = False

    @property
    def work(self) -> WorkFolder:
        """The folder of temporary files."""
        return WorkFolder(self.folder / WORK_NAME)


# -------------------------------------------------------------------------------------------- the cutting


class _Part(FileModel):
    file: Count
    at: Count
    stop_file: Count
    stop_at: Count
    bytes: Count


class _PlanFile(FileModel):
    """``plan.json``; ``made`` is what decides the bytes."""

    made: dict[str, Any]
    parts: Items[_Part]
    exact_partitions: Count = Field(ge=1, le=_MOST_PARTITIONS)
    near_partitions: Count = Field(ge=1, le=_MOST_PARTITIONS)


@dataclass(frozen=True)
class Cutting:
    """How the work is cut: parts of the source, and partitions of the hashes of texts and of bands."""

    parts: tuple[Part, ...]
    exact_partitions: int
    near_partitions: int

    @staticmethod
    def fitting(spec: DedupSpec, source: FileSource, size: ExpectedSize) -> Cutting:
        """The cutting of a run that begins: partitions fit into the memory if documents are as long as usual.

        Raises:
            DataError: a file cannot be read.
        """
        part_bytes = min(_MOST_PART, max(_LEAST_PART, size.bytes // _PARTS), max(_LEAST_PART, spec.memory_bytes // 4))
        part_bytes = max(part_bytes, size.bytes // (_MOST_PARTS // 2))
        parts = tuple(find_parts(source, BLOCK_BYTES // BYTES_PER_DOCUMENT, part_bytes))
        documents = likely_documents(size)
        few = min(_FEW_PARTITIONS, len(parts))
        bands = spec.near.banding.bands if spec.near else 0

        def partitions(records: int, stage: str) -> int:
            fitting = -(-records * SORT_BYTES[stage] * 2 // spec.memory_bytes)
            return max(few, min(_MOST_PARTITIONS, fitting))

        return Cutting(parts, partitions(documents, "exact"), partitions(documents * bands, "near"))

    def write(self, path: Path, made: dict[str, Any]) -> None:
        """Publish it, with what decides the bytes."""
        parts = [part.__dict__ for part in self.parts]
        counts = {"exact_partitions": self.exact_partitions, "near_partitions": self.near_partitions}
        write_json(path, {"made": made, "parts": parts, **counts})


def read_plan(path: Path) -> tuple[dict[str, Any], Cutting]:
    """What ``Cutting.write`` wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    found = read_model(path, _PlanFile, hint="start over with --overwrite")
    parts = tuple(Part(**part.model_dump()) for part in found.parts)
    if not parts:
        raise DataError(f"{path} names no parts", "start over with --overwrite")
    return found.made, Cutting(parts, found.exact_partitions, found.near_partitions)


# --------------------------------------------------------------------------------------------- estimates


def likely_documents(size: ExpectedSize) -> int:
    """About how many documents so many bytes of rows are."""
    return max(1, size.bytes // _DOCUMENT_BYTES)


def work_bytes(spec: DedupSpec, size: ExpectedSize) -> int:
    """About how much disk the temporary files take, besides the documents that are written."""
    a_document = DOCUMENT.itemsize + DIGEST.itemsize + 9
    total = 0
    if spec.near is not None:
        banding = spec.near.banding
        a_document += SIGNATURE.itemsize * banding.hashes + KEY.itemsize * banding.bands
        if spec.near.verification == "exact":
            total = int(size.bytes * 8 / 5.5)  # a hash for each word
    return total + likely_documents(size) * a_document


def place_of(part: int, index: np.ndarray) -> np.ndarray:
    """Places of documents of one part."""
    return np.uint64(part << INDEX_BITS) | index.astype(np.uint64)
