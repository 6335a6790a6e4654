"""``automodel preprocess dedup``: documents without duplicates, and what became of the others."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import command
from automodel_cli.cli.preprocess.bars import Bars, show_bad_rows
from automodel_cli.config.schema.dedup import DedupConfig
from automodel_cli.text import duration, plural

if TYPE_CHECKING:
    from automodel_cli.corpus.dedup.job import DedupResult
    from automodel_cli.corpus.dedup.report import DedupReport

_MOST_SOURCES = 12


@command(
    DedupConfig,
    arguments=("dataset",),
    examples=(
        "automodel preprocess dedup 'text/*.jsonl' --output-dir unique",
        "automodel preprocess dedup web --near 0.8 --output-dir unique",
    ),
)
def dedup(cfg: DedupConfig, context: typer.Context) -> None:
    """Leave out documents that repeat an earlier one, exactly or nearly.

    Documents stay in the order of the source, and the first of those that are alike stays. report.html in the
    folder shows what was left out, with examples.
    """
    worker.starting("preprocess dedup: opening input ...")
    from automodel_cli.recipes.preprocess import dedup as recipe

    started_s = time.monotonic()
    with Bars() as bars:
        result = recipe.run(cfg, arguments=Invocation.of(context).of_workers, progress=bars, say=console.say)
    if result.manifest is not None:
        _show(result, time.monotonic() - started_s)


def _show(result: DedupResult, elapsed_s: float) -> None:
    assert result.manifest is not None
    manifest, report = result.manifest, result.report
    show_bad_rows(manifest.bad_rows, result.bad_rows)
    if report is not None and 1 < len(report.sources) <= _MOST_SOURCES:
        head = ("source", "documents", "kept", "copies", "near", "left out")
        rows = [(name, *(f"{count:,}" for count in counts.values())) for name, counts in report.sources.items()]
        console.table("Documents by source", head, rows, right=head[1:])
    size = sum(file.bytes for file in manifest.files)
    facts = [("kept", f"{plural(manifest.documents, 'document')}, {size / 1e6:,.1f} MB in {_names(result)}")]
    facts += _left_out(report) if report is not None else [("left out", f"{manifest.duplicates:,} duplicates")]
    facts.append(("bad rows", f"{manifest.bad_rows:,}"))
    facts.append(("report", f"{result.folder}/report.html"))
    if not result.already_complete:
        facts.append(("time", f"{duration(elapsed_s)}{' (continued)' if result.continued else ''}"))
    console.facts(f"Documents in {result.folder}", facts)


def _names(result: DedupResult) -> str:
    assert result.manifest is not None
    names = [file.name for file in result.manifest.files]
    return f"{names[0]} ... {names[-1]}" if len(names) > 1 else names[0]


def _left_out(report: DedupReport) -> list[tuple[str, str]]:
    counts = [("copies", report.copies), *([("near-duplicates", report.near)] if report.near_options else [])]
    counts += [(rule, count) for rule, count in (report.left_out or {}).items() if count]
    facts = [(name, f"{count:,} left out, {count / report.documents:.2%}") for name, count in counts]
    if report.cluster_sizes:
        clusters = sum(count for _, count in report.cluster_sizes)
        facts.append(("clusters", f"{clusters:,}, the largest of {report.cluster_sizes[-1][0]:,} documents"))
    return facts
