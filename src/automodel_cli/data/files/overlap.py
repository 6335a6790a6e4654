"""Training and validation that read the same tokens: worth a line before a run, whose validation says nothing then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from automodel_cli.data.interface import DataSource, TokenRange, source_of


def notes_on_overlap(training: Any, held_out: Mapping[str, Any]) -> list[str]:
    """A line for each held-out set that reads tokens of ``training``; of data sets without token files nothing.

    Files are the same where they are one on the disk (links too), or where both sets hold the same content.
    """
    lines = []
    source = source_of(training)
    for name, dataset in held_out.items():
        other = source_of(dataset)
        ours, theirs = source.token_ranges(), other.token_ranges()
        shared = list(_shared(ours, theirs))
        tokens = sum(end - first for _, first, end in shared)
        if shared:
            path, first, end = shared[0]
            lines.append(
                f"{name} reads {tokens:,} tokens that training reads too (first: tokens {first:,} to {end:,} of "
                f"{path}): its loss does not say how the model does on text that it has not seen"
            )
        elif ours and theirs and _fingerprint(source) == _fingerprint(other) is not None:
            lines.append(f"{name} holds the very tokens that training reads, in copies of its files")
    return lines


def _fingerprint(dataset: DataSource) -> str | None:
    """Of the tokens read; None where that is not all of the files: equal files may be read in different ranges."""
    whole = all(first == 0 for _, first, _ in dataset.token_ranges())
    return dataset.describe().fingerprint if whole else None


def _shared(ours: Iterable[TokenRange], theirs: Iterable[TokenRange]) -> Iterator[TokenRange]:
    """What both have, as ranges of ``theirs``."""
    by_file: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for path, first, end in ours:
        by_file.setdefault(_identity(path), []).append((first, end))
    for path, first, end in theirs:
        for other_first, other_end in by_file.get(_identity(path), ()):
            low, high = max(first, other_first), min(end, other_end)
            if low < high:
                yield path, low, high


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
