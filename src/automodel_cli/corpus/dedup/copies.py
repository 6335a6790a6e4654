"""Stage ``exact``: documents whose text came before in the source, by the 128-bit hashes of their texts.

Among 10^10 different texts the chance that any two share a hash is about 10^-19.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from automodel_cli.corpus.dedup.plan import COPY, DIGEST, INDEX_BITS, SORT_BYTES, Cutting, DedupSpec, place_of
from automodel_cli.corpus.dedup.work import GroupedFile, GroupedWriter, WorkFolder, of_pass, passes_needed, published
from automodel_cli.corpus.jobs.job import Report, TaskReport

_RECORD = np.dtype([("low", "<u8"), ("high", "<u8"), ("place", "<u8")])


def find_copies(spec: DedupSpec, cutting: Cutting, partition: int, report: Report) -> None:
    """Do the task of one partition of the hashes.

    Raises:
        DataError: a file of an earlier stage is not whole.
        AutomodelError: the disk is full.
    """
    work, looked_at = spec.work, 0
    sizes = [_digests(work, cutting, part).size(partition) for part in range(len(cutting.parts))]
    passes = passes_needed(sum(sizes), SORT_BYTES["exact"], spec.memory_bytes)
    with published(work.path("exact", partition, "copies")) as handle:
        writer = GroupedWriter(handle, COPY, len(cutting.parts))
        for number in range(passes):
            records = _records(work, cutting, partition, number, passes)
            looked_at += len(records)
            places, firsts = copies_among(records)
            copies = np.empty(len(places), dtype=COPY)
            copies["index"], copies["first"] = places & np.uint64((1 << INDEX_BITS) - 1), firsts
            writer.add(copies, places >> np.uint64(INDEX_BITS))
            report(TaskReport(documents=looked_at))
        writer.finish()


def _digests(work: WorkFolder, cutting: Cutting, part: int) -> GroupedFile:
    return GroupedFile(work.path("read", part, "digests"), DIGEST, cutting.exact_partitions)


def _records(work: WorkFolder, cutting: Cutting, partition: int, number: int, passes: int) -> np.ndarray:
    found = []
    for part in range(len(cutting.parts)):
        digests = _digests(work, cutting, part).read(partition)
        if passes > 1:
            digests = digests[of_pass(digests["high"], number, passes)]
        records = np.empty(len(digests), dtype=_RECORD)
        records["low"], records["high"] = digests["low"], digests["high"]
        records["place"] = place_of(part, digests["index"])
        found.append(records)
    return np.concatenate(found)


def copies_among(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of texts that came before, and for each the place where its text came first."""
    records = records[np.lexsort((records["place"], records["low"], records["high"]))]
    again = np.zeros(len(records), dtype=bool)
    again[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    begins = np.flatnonzero(~again)
    firsts = records["place"][begins][np.cumsum(~again) - 1] if len(records) else records["place"]
    return records["place"][again], firsts[again]


def copies_of_part(spec: DedupSpec, cutting: Cutting, part: int) -> Iterator[np.ndarray]:
    """The copies in one part, as ``COPY``, in pieces; none where nobody looked for them."""
    for partition in range(cutting.exact_partitions if spec.exact else 0):
        path = spec.work.path("exact", partition, "copies")
        yield GroupedFile(path, COPY, len(cutting.parts)).read(part)
