"""Stage ``clusters``: which document stays for which, and which documents go into which file. One task.

Duplicates of duplicates are duplicates: documents that pairs connect are a cluster, and its first document in the
source stays. Clusters are found with union-find over an array of 8 bytes a document, in a mapped file; roots are hooked
to smaller ones and paths halved for many pairs at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from automodel_cli.corpus.build.pipeline import NoText
from automodel_cli.corpus.dedup.copies import copies_of_part
from automodel_cli.corpus.dedup.plan import DOCUMENT, INDEX_BITS, PAIR, Cutting, DedupSpec
from automodel_cli.corpus.dedup.reading import read_summary
from automodel_cli.corpus.dedup.work import load, published
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.shuffle.buckets import iter_array
from automodel_cli.json_files import Count, FileModel, Items, read_model
from automodel_cli.text import plural

KEPT, COPY_STATE, NEAR_STATE, FIRST_RULE = 0, 1, 2, 3
"""States of documents: kept, a copy, a near-duplicate, left out by rule number ``state - FIRST_RULE + 1``."""

LARGEST = 20  # clusters that the report shows
EXAMPLES = 3  # documents of each, besides the one that stays
_AT_ONCE = 1 << 20


class FilePlan(FileModel):
    """A file to write: documents numbered ``first`` to ``stop``, of which ``documents`` stay, ``bytes`` in all."""

    first: Count
    stop: Count
    documents: Count
    bytes: Count


class Cluster(FileModel):
    """A cluster: the number of the document that stays, how many there are, and some of the others."""

    kept: Count
    size: Count
    others: Items[Count]


class Clusters(FileModel):
    """What the stage found; ``sizes`` counts clusters by the number of their documents (of two or more)."""

    documents: Count
    kept: Count
    copies: Count
    near: Count
    sizes: Items[Items[Count]]
    largest: Items[Cluster]
    files: Items[FilePlan]


def read_clusters(spec: DedupSpec) -> Clusters:
    """What the stage left."""
    return read_model(spec.work.path("clusters", 0, "json"), Clusters, hint="run again with --overwrite")


# --------------------------------------------------------------------------------------------- union-find


def unite(parents: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Put the documents of each pair into one cluster; ``parents[n] <= n`` leads to the smallest of it."""
    while len(first):
        first, second = roots(parents, first), roots(parents, second)
        apart = first != second
        low, high = np.minimum(first[apart], second[apart]), np.maximum(first[apart], second[apart])
        np.minimum.at(parents, high, low)  # of several pairs one is done; the others come again
        first, second = low, high


def roots(parents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The smallest document of the cluster of each; the paths there become shorter."""
    found = numbers
    while True:
        above = parents[found]
        higher = parents[above]
        if np.array_equal(above, higher):
            parents[numbers] = above
            return above
        parents[found] = higher
        found = higher


# --------------------------------------------------------------------------------------------------- task


@dataclass(frozen=True)
class Numbering:
    """Numbers of documents in the source, from 0, and places."""

    starts: np.ndarray  # of each part, and one more: how many there are, int64

    @staticmethod
    def of(spec: DedupSpec, cutting: Cutting) -> Numbering:
        """From the summaries of all parts."""
        counts = [read_summary(spec.work, part).documents for part in range(len(cutting.parts))]
        return Numbering(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))))

    @property
    def documents(self) -> int:
        """All of them."""
        return int(self.starts[-1])

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Of documents by their places, int64."""
        parts = (places >> np.uint64(INDEX_BITS)).astype(np.int64)
        return self.starts[parts] + (places & np.uint64((1 << INDEX_BITS) - 1)).astype(np.int64)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of ``numbers``, uint64."""
        parts = np.searchsorted(self.starts, numbers, side="right") - 1
        return (parts.astype(np.uint64) << np.uint64(INDEX_BITS)) | (numbers - self.starts[parts]).astype(np.uint64)


def find_clusters(spec: DedupSpec, cutting: Cutting, report: Report) -> None:
    """Do the only task of the stage.

    Raises:
        NoText: no document stays.
        DataError: a file of an earlier stage is not whole.
        AutomodelError: the disk is full.
    """
    work, numbering = spec.work, Numbering.of(spec, cutting)
    count = numbering.documents
    if count == 0:
        bad = sum(read_summary(work, part).bad_rows for part in range(len(cutting.parts)))
        nothing = f"{spec.dataset} holds no documents ({plural(bad, 'bad row')})"
        raise NoText(nothing, "check the input, --text-key and --document")
    with published(work.parents) as parents_file, published(work.states) as states_file:
        for first in range(0, count, _AT_ONCE):
            parents_file.write(np.arange(first, min(count, first + _AT_ONCE), dtype="<i8").tobytes())
        states_file.truncate(count)
        parents_file.flush()
        states_file.flush()
        parents = np.memmap(parents_file.name, dtype="<i8", mode="r+", shape=(count,))
        states = np.memmap(states_file.name, dtype=np.uint8, mode="r+", shape=(count,))
        _settle(spec, cutting, numbering, parents, states)
        parents.flush()
        states.flush()
        found = _Counting(parents, states).count(spec, cutting, numbering)
    if not found["kept"]:
        raise NoText(f"no document of {spec.dataset} is left: the filters leave out all", "use weaker filters")
    with published(work.path("clusters", 0, "json")) as handle:
        handle.write(json.dumps(found).encode())
    report(TaskReport(documents=count))


def _settle(spec: DedupSpec, cutting: Cutting, numbering: Numbering, parents: np.ndarray, states: np.ndarray) -> None:
    """Clusters of all pairs, then the state of each document."""
    for part in range(len(cutting.parts)):
        for copies in copies_of_part(spec, cutting, part):
            numbers = numbering.starts[part] + copies["index"].astype(np.int64)
            states[numbers] = COPY_STATE
            unite(parents, numbering.numbers(copies["first"]), numbers)
    for partition in range(cutting.near_partitions if spec.near else 0):
        for pairs in iter_array(spec.work.path("near", partition, "pairs"), PAIR, _AT_ONCE):
            unite(parents, numbering.numbers(pairs["first"]), numbering.numbers(pairs["second"]))
    for part in range(len(cutting.parts)):
        begin, stop = int(numbering.starts[part]), int(numbering.starts[part + 1])
        verdicts = load(spec.work.path("read", part, "documents"), DOCUMENT, count=stop - begin)["verdict"]
        for first in range(begin, stop, _AT_ONCE):
            numbers = np.arange(first, min(stop, first + _AT_ONCE))
            some = states[first : first + len(numbers)]
            some[(roots(parents, numbers) != numbers) & (some == KEPT)] = NEAR_STATE
            chosen = verdicts[first - begin : first - begin + len(numbers)]
            some[chosen > 0] = chosen[chosen > 0] - 1 + FIRST_RULE
            states[first : first + len(numbers)] = some


class _Counting:
    """Clusters by size, the largest ones, and the files that the documents fill."""

    def __init__(self, parents: np.ndarray, states: np.ndarray) -> None:
        self._parents, self._states = parents, states

    def count(self, spec: DedupSpec, cutting: Cutting, numbering: Numbering) -> dict[str, object]:
        """As ``Clusters``, in JSON."""
        sizes, largest = self._sizes()
        counts = np.zeros(256, dtype=np.int64)
        for first, stop in self._ranges():
            counts += np.bincount(self._states[first:stop], minlength=256)
        return {
            "documents": numbering.documents,
            "kept": int(counts[KEPT]),
            "copies": int(counts[COPY_STATE]),
            "near": int(counts[NEAR_STATE]),
            "sizes": sizes,
            "largest": largest,
            "files": [file.model_dump() for file in _files(spec, cutting, numbering, self._states)],
        }

    def _ranges(self) -> Iterator[tuple[int, int]]:
        for first in range(0, len(self._parents), _AT_ONCE):
            yield first, min(len(self._parents), first + _AT_ONCE)

    def _sizes(self) -> tuple[list[tuple[int, int]], list[dict[str, object]]]:
        members = np.zeros(len(self._parents), dtype=np.uint32)
        for first, stop in self._ranges():
            np.add.at(members, self._parents[first:stop], np.uint32(1))
        sizes: Counter[int] = Counter()
        top = np.zeros(0, dtype=np.int64)
        for first, stop in self._ranges():
            several = first + np.flatnonzero(members[first:stop] > 1)
            sizes.update(members[several].tolist())
            top = np.concatenate((top, several))
            top = top[np.argsort(-members[top].astype(np.int64), kind="stable")][:LARGEST]
        others = self._others(top)
        largest = [{"kept": kept, "size": int(members[kept]), "others": others[kept]} for kept in top.tolist()]
        return sorted(sizes.items()), largest

    def _others(self, top: np.ndarray) -> dict[int, list[int]]:
        """For each of some clusters the first of the documents that do not stay."""
        others: dict[int, list[int]] = {kept: [] for kept in top.tolist()}
        for first, stop in self._ranges():
            parents = self._parents[first:stop]
            for number in (first + np.flatnonzero(np.isin(parents, top))).tolist():
                kept = int(self._parents[number])
                if number != kept and len(others[kept]) < EXAMPLES:
                    others[kept].append(number)
        return others


def _files(spec: DedupSpec, cutting: Cutting, numbering: Numbering, states: np.ndarray) -> list[FilePlan]:
    """The documents that stay, in order, in files of at most ``chunk_bytes`` (or one document)."""
    files: list[FilePlan] = []
    first = documents = size = 0  # of the file under way
    for part in range(len(cutting.parts)):
        begin, stop = int(numbering.starts[part]), int(numbering.starts[part + 1])
        lengths = load(spec.work.path("read", part, "documents"), DOCUMENT, count=stop - begin)["length"]
        kept = np.flatnonzero(states[begin:stop] == KEPT)
        ends = np.cumsum(lengths[kept], dtype=np.int64)
        done = 0
        while done < len(kept):
            before = int(ends[done - 1]) if done else 0
            upto = int(np.searchsorted(ends, before + spec.chunk_bytes - size, side="right"))
            if not documents:
                upto = max(upto, done + 1)
            if upto > done:
                documents, size = documents + upto - done, size + int(ends[upto - 1]) - before
                done = upto
            if done < len(kept):  # the next one does not fit
                number = begin + int(kept[done])
                files.append(FilePlan(first=first, stop=number, documents=documents, bytes=size))
                first, documents, size = number, 0, 0
    files.append(FilePlan(first=first, stop=numbering.documents, documents=documents, bytes=size))
    return files
