"""Tables of what is mixed: a blend of Megatron files, for ``pretrain`` and ``preprocess index``, and a ``Mixture``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from automodel_cli.assembly.reporter import Columns
from automodel_cli.data.interface import BlendStats, DataSource, SourceStats, source_of

_SHOWN_FILES = 16  # of more, the first and the last
BLEND_HEADINGS = ("data", "prefix", "documents", "first", "last", "tokens", "weight", "samples", "epochs")

MIXTURE_HEADINGS = ("data", "source", "tokens", "windows", "weight", "windows read", "tokens read", "passes")


def mixture_table(datasets: Mapping[str, Any]) -> tuple[str, Sequence[str], Columns] | None:
    """What each source gives to each mixture: title, headings and rows; None where no data set is one.

    ``weight`` is its share in each stage, ``passes`` how often the run reads its ``windows``.
    """
    rows = [
        _source_row(name, stats, source.describe().seq_len or 0)
        for name, source in ((name, source_of(dataset)) for name, dataset in datasets.items())
        for stats in source.source_stats()
    ]
    return ("Mixture", MIXTURE_HEADINGS, rows) if rows else None


def _source_row(name: str, stats: SourceStats, seq_len: int) -> Sequence[str]:
    weights = ", ".join(f"{weight:.4g}" for weight in stats.weights)
    read = (f"{stats.windows:,}", f"{stats.windows * seq_len:,}", f"{stats.windows / stats.available:.3g}")
    return (name, stats.name, f"{stats.tokens:,}", f"{stats.available:,}", weights, *read)


def blend_table(datasets: Mapping[str, Any]) -> tuple[str, Sequence[str], Columns] | None:
    """What each file gives to each blend: title, headings and rows; None where no data set is one.

    ``documents`` of the split, of which ``first`` and ``last`` are the numbers in the file; how many ``samples`` are
    drawn of them (``weight`` is their share), and how often their tokens are read for those (``epochs``).
    """
    rows = [row for name, dataset in datasets.items() for row in _blend_rows(name, source_of(dataset))]
    return ("Megatron files", BLEND_HEADINGS, rows) if rows else None


def _blend_rows(name: str, source: DataSource) -> list[Sequence[str]]:
    found = source.blend_stats()
    rows: list[Sequence[str]] = [_blend_row(name, stats) for stats in found]
    if len(found) > _SHOWN_FILES:
        half = _SHOWN_FILES // 2
        left_out = (name, f"... {len(found) - _SHOWN_FILES:,} more", *[""] * (len(BLEND_HEADINGS) - 2))
        rows = [*rows[:half], left_out, *rows[-half:]]
    if len(found) > 1:
        known = source.describe()
        tokens, samples, seq_len = known.tokens or 0, known.sequences or 0, known.seq_len or 0
        documents = sum(stats.end - stats.begin for stats in found)
        counts = (f"{documents:,}", "", "", f"{tokens:,}", "1", f"{samples:,}")
        rows.append((name, f"all {len(found):,}", *counts, f"{samples * seq_len / max(tokens, 1):.3g}"))
    return rows


def _blend_row(name: str, stats: BlendStats) -> Sequence[str]:
    count = stats.end - stats.begin
    bounds = (f"{stats.begin:,}", f"{stats.end - 1:,}") if count else ("", "")
    numbers = (f"{stats.tokens:,}", f"{stats.weight:.4g}", f"{stats.samples:,}", f"{stats.epochs:.3g}")
    return (name, stats.name, f"{count:,}", *bounds, *numbers)
