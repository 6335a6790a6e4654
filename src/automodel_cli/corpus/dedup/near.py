"""Stages ``bands`` and ``near``: pairs of documents that are alike, without comparing all.

1. ``bands``: the signatures of a part, without those of copies, become hashes of their bands, grouped by partition
2. ``near``: in a partition, documents with the same hash are a *bucket*; candidates in it are compared

Of a bucket all pairs are compared while it has up to ``WINDOW`` + 1 documents. In a larger one each document is
compared with the first and, unless both of a pair are like the first, with the ``WINDOW`` before it: so the work grows
with the number of documents, whatever they are. A document is then found by the first of its bucket, by a neighbor, or
in another band's bucket.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from automodel_cli.corpus.dedup.copies import copies_of_part
from automodel_cli.corpus.dedup.minhash import EMPTY, SIGNATURE, agreements_needed, band_keys
from automodel_cli.corpus.dedup.plan import (
    DOCUMENT,
    INDEX_BITS,
    KEY,
    PAIR,
    SORT_BYTES,
    Cutting,
    DedupSpec,
    Near,
    place_of,
)
from automodel_cli.corpus.dedup.shingles import jaccard
from automodel_cli.corpus.dedup.work import (
    GroupedFile,
    GroupedWriter,
    WorkFolder,
    load,
    of_pass,
    partition_of,
    passes_needed,
    published,
)
from automodel_cli.corpus.jobs.job import Report, TaskReport

WINDOW = 32
_MOST_OPEN = 64  # parts whose shingles are mapped at a time
_BLOCK_BYTES = 16 << 20  # of signatures at a time
Alike = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Which pairs of places are near-duplicates."""


# ------------------------------------------------------------------------------------------------ bands


def write_band_keys(spec: DedupSpec, cutting: Cutting, part: int, report: Report) -> None:
    """Do the task of one part of stage ``bands``.

    Raises:
        DataError: a file of an earlier stage is not whole.
        AutomodelError: the disk is full.
    """
    assert spec.near is not None
    work, banding = spec.work, spec.near.banding
    live = load(work.path("read", part, "documents"), DOCUMENT)["verdict"] == 0
    for copies in copies_of_part(spec, cutting, part):
        live[copies["index"]] = False
    step = max(1, _BLOCK_BYTES // (SIGNATURE.itemsize * banding.hashes))
    with published(work.path("bands", part, "keys")) as handle:
        writer = GroupedWriter(handle, KEY, cutting.near_partitions)
        for first in range(0, len(live), step):
            some = live[first : first + step]
            found = _rows(work, part, banding.hashes, first, len(some))
            chosen = np.flatnonzero(some & (found != EMPTY).any(axis=1))
            keys = band_keys(found[chosen], banding).ravel()
            records = np.empty(len(keys), dtype=KEY)
            records["key"], records["index"] = keys, np.repeat(first + chosen, banding.bands)
            writer.add(records, partition_of(keys, cutting.near_partitions))
            report(TaskReport(documents=first + len(some)))
        writer.finish()


def _rows(work: WorkFolder, part: int, hashes: int, first: int, count: int) -> np.ndarray:
    path = work.path("read", part, "signatures")
    return load(path, SIGNATURE, first=first * hashes, count=count * hashes).reshape(count, hashes)


# ------------------------------------------------------------------------------------------------- pairs


def find_pairs(spec: DedupSpec, cutting: Cutting, partition: int, report: Report) -> None:
    """Do the task of one partition of stage ``near``.

    Raises:
        DataError: a file of an earlier stage is not whole.
        AutomodelError: the disk is full.
    """
    assert spec.near is not None
    work, compare = spec.work, Comparison(spec.work, spec.near, spec.memory_bytes // 4)
    sizes = [_keys(work, cutting, part).size(partition) for part in range(len(cutting.parts))]
    passes = passes_needed(sum(sizes), SORT_BYTES["near"], spec.memory_bytes // 2)
    looked_at = 0
    with published(work.path("near", partition, "pairs")) as handle:
        for number in range(passes):
            keys, places = _bucket_members(work, cutting, partition, number, passes)
            for first, second in alike_in_buckets(keys, places, compare):
                pairs = np.empty(len(first), dtype=PAIR)
                pairs["first"], pairs["second"] = first, second
                handle.write(pairs.tobytes())
            looked_at += len(keys)
            report(TaskReport(documents=looked_at))


def _keys(work: WorkFolder, cutting: Cutting, part: int) -> GroupedFile:
    return GroupedFile(work.path("bands", part, "keys"), KEY, cutting.near_partitions)


def _bucket_members(
    work: WorkFolder, cutting: Cutting, partition: int, number: int, passes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and places of the documents in buckets of more than one, sorted by key, then place."""
    keys, places = [], []
    for part in range(len(cutting.parts)):
        records = _keys(work, cutting, part).read(partition)
        if passes > 1:
            records = records[of_pass(records["key"], number, passes)]
        keys.append(records["key"].copy())
        places.append(place_of(part, records["index"]))
    key, place = np.concatenate(keys), np.concatenate(places)
    del keys, places
    order = np.argsort(key, kind="stable")  # places came in order
    key, place = key[order], place[order]
    same = key[1:] == key[:-1]
    member = np.concatenate((same, [False])) | np.concatenate(([False], same))
    return key[member], place[member]


def alike_in_buckets(keys: np.ndarray, places: np.ndarray, alike: Alike) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places that are alike, in buckets of equal keys; both arrays are sorted, as (key, place)."""
    if not len(keys):
        return
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    numbers = np.arange(len(keys))
    bucket_begins = np.repeat(begins, np.diff(np.append(begins, len(keys))))
    rest = numbers[numbers > bucket_begins]
    like_first = np.zeros(len(keys), dtype=bool)
    like_first[rest] = alike(places[bucket_begins[rest]], places[rest])
    chosen = rest[like_first[rest]]
    yield places[bucket_begins[chosen]], places[chosen]
    for back in range(1, WINDOW + 1):
        rest = rest[rest - back > bucket_begins[rest]]
        if not len(rest):
            return
        unknown = rest[~(like_first[rest] & like_first[rest - back])]
        chosen = unknown[alike(places[unknown - back], places[unknown])]
        yield places[chosen - back], places[chosen]


# ----------------------------------------------------------------------------------------------- comparing


class Comparison:
    """Compares documents by what stage ``read`` left of them, some at a time."""

    def __init__(self, work: WorkFolder, near: Near, memory_bytes: int) -> None:
        self._work, self._near = work, near
        self._sets_of = functools.lru_cache(maxsize=_MOST_OPEN)(self._open_sets)
        self._step = max(1, memory_bytes // (4 * SIGNATURE.itemsize * near.banding.hashes))

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Which of the pairs of places are near-duplicates.

        Raises:
            DataError: a file of an earlier stage is not whole.
        """
        if self._near.verification == "exact":
            return self.similarities(first, second) >= self._near.threshold - 1e-9
        needed = agreements_needed(self._near.threshold, self._near.banding.hashes)
        return self._agreements(first, second) >= needed

    def similarities(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The Jaccard similarity of each pair: exact where that is asked for, else estimated by signatures."""
        if self._near.verification == "signature":
            return self._agreements(first, second) / self._near.banding.hashes
        found = [jaccard(self._set(a), self._set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        return np.array(found, dtype=np.float64)

    def _agreements(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """In how many values the signatures of each pair agree."""
        found = np.zeros(len(first), dtype=np.int64)
        for begin in range(0, len(first), self._step):
            some = slice(begin, begin + self._step)
            unique, numbers = np.unique(np.concatenate((first[some], second[some])), return_inverse=True)
            rows = self._gather(unique)
            half = len(numbers) // 2
            found[some] = (rows[numbers[:half]] == rows[numbers[half:]]).sum(axis=1)
        return found

    def _gather(self, places: np.ndarray) -> np.ndarray:
        """The signatures at ``places``, which are sorted."""
        hashes = self._near.banding.hashes
        rows = np.empty((len(places), hashes), dtype=SIGNATURE)
        parts = places >> np.uint64(INDEX_BITS)
        indices = (places & np.uint64((1 << INDEX_BITS) - 1)).astype(np.int64)
        begins = np.flatnonzero(np.concatenate(([True], parts[1:] != parts[:-1]))) if len(places) else parts
        for begin, stop in zip(begins.tolist(), [*begins[1:].tolist(), len(places)], strict=False):
            path = self._work.path("read", int(parts[begin]), "signatures")
            mapped = np.memmap(path, dtype=SIGNATURE, mode="r").reshape(-1, hashes)
            rows[begin:stop] = mapped[indices[begin:stop]]
        return rows

    def _open_sets(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the sets of a part begin, and the shingles; mapped, so that only what is looked at is read."""
        begins = np.memmap(self._work.path("read", part, "sets"), dtype="<u8", mode="r")
        return begins, np.memmap(self._work.path("read", part, "shingles"), dtype="<u8", mode="r")

    def _set(self, place: int) -> np.ndarray:
        part, index = place >> INDEX_BITS, place & ((1 << INDEX_BITS) - 1)
        begins, shingles = self._sets_of(part)
        return shingles[begins[index] : begins[index + 1]]
