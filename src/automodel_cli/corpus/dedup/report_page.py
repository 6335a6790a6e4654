"""``report.html``: one file without scripts or anything from elsewhere; texts of documents are escaped.

Examples stand side by side, with words marked that the other text does not have in that place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from automodel_cli.corpus.dedup.report import DedupReport, ShownCluster
from automodel_cli.plain_text import without_controls
from automodel_cli.text import plural

_SHOWN_WORDS, _WORDS_BEFORE = 120, 15
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7fb5; --mark: #e8a33d66; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { padding: .15rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td:first-child, th:first-child { text-align: left; }
td.bar { width: 24rem; text-align: left; } td.bar div { background: var(--bar); height: .8rem; min-width: 1px; }
.cluster { border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; margin: 1rem 0; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
mark { background: var(--mark); color: inherit; } small { opacity: .7; }
"""


def page(report: DedupReport) -> str:
    """The page."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Duplicates and filters</title><style>{_STYLE}</style><h1>Duplicates and filters</h1>",
        _totals(report),
        _section("By source", _sources(report)),
        _section("Clusters by size", _sizes(report)),
        _section("Near-duplicates by similarity to the document that stays", _similarities(report)),
        _section("Largest clusters", "".join(_cluster(one) for one in report.largest)),
        _section("Left out by filters: samples", _samples(report)),
    ]
    return "".join(parts) + "</html>\n"


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are escaped, except for those that are bars."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(_cell(value) for value in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


class _Bar(float):
    """A share, 0 to 1, shown as a bar."""


def _cell(value: Any) -> str:
    if isinstance(value, _Bar):
        return f"<td class=bar><div style='width:{100 * value:.1f}%'></div></td>"
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{_safe(str(value))}</td>"


def _safe(text: str) -> str:
    return escape(without_controls(text))


def _totals(report: DedupReport) -> str:
    rows: list[tuple[str, int, str]] = [("documents", report.documents, "")]

    def add(name: str, count: int) -> None:
        rows.append((name, count, f"{count / max(1, report.documents):.2%}"))

    add("kept", report.kept)
    add("exact copies, left out", report.copies)
    if report.near_options is not None:
        add("near-duplicates, left out", report.near)
    left_out = report.left_out or {}
    for rule, count in left_out.items():
        if count:
            add(f"left out by {rule}", count)
    table = _table(("", "documents", "share"), rows)
    told = ""
    if idle := [rule for rule, count in left_out.items() if not count]:
        told += f"<p>Filters that left out nothing: {escape(', '.join(idle))}.</p>"
    told += f"<p>{plural(report.bad_rows, 'row')} without usable text; {report.bytes / 1e6:,.1f} MB were written.</p>"
    if (near := report.near_options) is not None:
        told += (
            f"<p>Near-duplicates: Jaccard similarity of sets of runs of {escape(near['shingles'])} from "
            f"{near['threshold']} on; candidates by {near['bands']} bands of {near['rows']} MinHash values, decided by "
            f"{'their exact similarity' if near['verification'] == 'exact' else 'what their signatures estimate'}.</p>"
        )
    return table + told


def _sources(report: DedupReport) -> str:
    head = ("source", "documents", "kept", "copies", "near", "left out")
    return _table(head, [(source, *counts.values()) for source, counts in report.sources.items()])


def size_ranges(sizes: Iterable[tuple[int, int]]) -> list[tuple[str, int, int]]:
    """Clusters in ranges of sizes that double: the range, clusters in it, documents in these."""
    found: dict[int, tuple[int, int]] = {}
    for size, count in sizes:
        power = (size - 1).bit_length()
        clusters, documents = found.get(power, (0, 0))
        found[power] = clusters + count, documents + size * count
    ranges = []
    for power, (clusters, documents) in sorted(found.items()):
        low, high = (1 << power >> 1) + 1, 1 << power
        ranges.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", clusters, documents))
    return ranges


def _sizes(report: DedupReport) -> str:
    ranges = size_ranges(report.cluster_sizes)
    most = max((clusters for _, clusters, _ in ranges), default=1)
    rows = [(name, clusters, documents, _Bar(clusters / most)) for name, clusters, documents in ranges]
    return _table(("documents in a cluster", "clusters", "documents", ""), rows) if rows else ""


def _similarities(report: DedupReport) -> str:
    counts = report.similarities
    if not any(counts):
        return ""
    first, most = next(k for k, count in enumerate(counts) if count), max(counts)
    step = 1 / len(counts)
    rows = [
        (f"{k * step:.2f} to {(k + 1) * step:.2f}", counts[k], _Bar(counts[k] / most))
        for k in range(first, len(counts))
    ]
    note = (
        "<p><small>Below the threshold: documents that another duplicate connects with the one that stays.</small></p>"
    )
    return _table(("similarity", "documents", ""), rows) + note


def _cluster(cluster: ShownCluster) -> str:
    if not cluster.documents:
        return ""
    kept, *others = cluster.documents
    lines = [f"<div class=cluster><b>{plural(cluster.size, 'document')}</b>"]
    for other in others or [kept]:
        left, right = marked(kept["text"], other["text"])
        similar = "" if other["similarity"] is None else f", similarity {other['similarity']:.2f}"
        lines.append(
            f"<div class=sides><div><small>stays: {_safe(kept['source'])}</small><div class=text>{left}</div></div>"
            f"<div><small>left out: {_safe(other['source'])}{similar}</small><div class=text>{right}</div></div></div>"
        )
    return "".join(lines) + "</div>"


def marked(first: str, second: str) -> tuple[str, str]:
    """Some words of both, from before their first difference on, as HTML; what the other one lacks is marked."""
    a, b = (re.findall(r"\s*\S+", without_controls(text)) for text in (first, second))
    same = next((k for k, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), 0)
    start = same - _WORDS_BEFORE if same > 2 * _WORDS_BEFORE else 0
    are_cut = [len(words) > start + _SHOWN_WORDS for words in (a, b)]
    a, b = (["…"] * (start > 0) + words[start : start + _SHOWN_WORDS] for words in (a, b))
    left, right = [], []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        one, other = escape("".join(a[i:j])), escape("".join(b[k:m]))
        is_cut = (i == len(a) and are_cut[0]) or (k == len(b) and are_cut[1])  # the other text may go on like this
        is_same = kind == "equal" or is_cut
        left.append(one if is_same or not one else f"<mark>{one}</mark>")
        right.append(other if is_same or not other else f"<mark>{other}</mark>")
    return "".join(left), "".join(right)


def _samples(report: DedupReport) -> str:
    rows = [
        (rule, sample["found"], sample["source"], sample["text"])
        for rule, samples in report.samples.items()
        for sample in samples
    ]
    return _table(("filter", "found", "source", "text"), rows) if rows else ""
