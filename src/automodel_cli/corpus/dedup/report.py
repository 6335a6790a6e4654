"""What a run found, in numbers and examples: ``report.json``, and the base of ``report.html``.

| key          | value                                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| format       | "automodel-dedup/1"                                                                            |
| documents    | documents with usable text; of them ``kept``, ``copies``, ``near``, and ``left_out`` by filters|
| bad_rows     | rows without usable text                                                                       |
| bytes        | of the documents that stay, as they are written                                                |
| near_options | threshold, shingles, bands, rows, verification; null without ``--near``                        |
| sources      | for each file (of very many: each folder): documents, kept, copies, near, left_out             |
| cluster_sizes| a list of [documents in a cluster, how many such clusters]                                     |
| similarities | near-duplicates by their similarity to the document that stays: counts in 20 ranges from 0 to 1|
| largest      | the largest clusters: size, and some of their documents: source, text, similarity              |
| samples      | for each filter some documents that it left out: source, text, found                           |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from automodel_cli.corpus.dedup.clusters import Clusters
from automodel_cli.corpus.dedup.plan import DedupSpec, Near
from automodel_cli.corpus.dedup.reading import FIRST_SAMPLES, PartSummary
from automodel_cli.corpus.dedup.writing import BINS, Excerpt, WriteSummary

FORMAT = "automodel-dedup/1"


@dataclass(frozen=True)
class ShownCluster:
    """A cluster with some of its documents, the one that stays first."""

    size: int
    documents: list[dict[str, Any]]


@dataclass(frozen=True)
class DedupReport:
    """See above; ``left_out`` is None where nobody filtered."""

    documents: int
    kept: int
    copies: int
    near: int
    left_out: dict[str, int] | None
    bad_rows: int
    bytes: int
    near_options: dict[str, Any] | None
    sources: dict[str, dict[str, int]]
    cluster_sizes: list[tuple[int, int]]
    similarities: list[int]
    largest: list[ShownCluster]
    samples: dict[str, list[dict[str, str]]]

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, **asdict(self)}


def report_of(
    spec: DedupSpec, clusters: Clusters, parts: Sequence[PartSummary], written: Sequence[WriteSummary]
) -> DedupReport:
    """The summaries of all tasks put together, in the order of the source."""
    excerpts = {int(number): excerpt for one in written for number, excerpt in one.excerpts.items()}
    return DedupReport(
        documents=clusters.documents,
        kept=clusters.kept,
        copies=clusters.copies,
        near=clusters.near,
        left_out=_left_out(spec, parts),
        bad_rows=sum(part.bad_rows for part in parts),
        bytes=sum(one.bytes for one in written),
        near_options=None if spec.near is None else near_options(spec.near),
        sources=_sources(written),
        cluster_sizes=[(size, count) for size, count in clusters.sizes],
        similarities=[sum(one.similarities[k] for one in written) for k in range(BINS)],
        largest=[_shown(one.size, [one.kept, *one.others], excerpts) for one in clusters.largest],
        samples=_samples(parts),
    )


def near_options(near: Near) -> dict[str, Any]:
    """How near-duplicates were found, for people and manifests."""
    return {
        "threshold": near.threshold,
        "shingles": f"{near.shingling.size} {near.shingling.kind}",
        "bands": near.banding.bands,
        "rows": near.banding.rows,
        "verification": near.verification,
    }


def _left_out(spec: DedupSpec, parts: Sequence[PartSummary]) -> dict[str, int] | None:
    if spec.filters is None:
        return None
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.left_out)
    return {rule: counts[rule] for rule in spec.filters.names}


def _samples(parts: Sequence[PartSummary]) -> dict[str, list[dict[str, str]]]:
    samples: dict[str, list[dict[str, str]]] = {}
    for part in parts:
        for rule, some in part.samples.items():
            known = samples.setdefault(rule, [])
            known += [one.model_dump() for one in some[: FIRST_SAMPLES - len(known)]]
    return samples


def _sources(written: Sequence[WriteSummary]) -> dict[str, dict[str, int]]:
    names = ("documents", "kept", "copies", "near", "left_out")
    found: dict[str, Counter[str]] = {}
    for one in written:
        for source, counts in one.sources.items():
            found.setdefault(source, Counter()).update(dict(zip(names, counts, strict=True)))
    return {source: {name: counts[name] for name in names} for source, counts in found.items()}


def _shown(size: int, numbers: list[int], excerpts: dict[int, Excerpt]) -> ShownCluster:
    return ShownCluster(size, [excerpts[number].model_dump() for number in numbers if number in excerpts])
