"""``metrics.jsonl`` back as columns: what plots, comparisons and notebooks read.

Tolerant by design: a run that is still being written, or was killed, has a torn last line; it is skipped.
Where a step appears twice (two runs wrote into one folder), the later line wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, is_sound, lines_of, metrics_path

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class RunMetrics:
    """The numbers of one run, ordered by step.

    Attributes:
        label: short name that tells it from the other runs read with it.
        path: its ``metrics.jsonl``.
        train: columns of the training records: ``step`` int64, every other numeric key float64, NaN where a
            record lacks it.
        validation: the same for each validation set, by name.
        skipped_lines: lines that are no record, or not the one that was written.
    """

    label: str
    path: Path
    train: Columns
    validation: dict[str, Columns] = field(default_factory=dict)
    skipped_lines: int = 0


def read_metrics(run: Path | str, *, label: str | None = None) -> RunMetrics:
    """Read the metrics of ``run``, a run folder or a ``metrics.jsonl``.

    Raises:
        DataError: there is no such file, or no record in it.
    """
    path = metrics_path(run)
    lines = [line for line, _ in lines_of(path) if line.strip()]
    records = [record for line in lines if is_sound(line) is not False and (record := decode_line(line)) is not None]
    if not records:
        raise DataError(f"{path} holds no record", "the run has logged nothing yet; wait for its first step")
    return RunMetrics(
        label=label or _run_folder(path).name,
        path=path,
        train=to_columns(record for record in records if record.get("kind") == "train"),
        validation=_by_validation_set(records),
        skipped_lines=len(lines) - len(records),
    )


def read_runs(runs: Sequence[Path | str]) -> list[RunMetrics]:
    """Read several runs; labels are the shortest tails of their paths that differ."""
    folders = [_run_folder(metrics_path(run)) for run in runs]
    labels = distinct_tails([folder.parts for folder in folders])
    return [read_metrics(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _run_folder(metrics_file: Path) -> Path:
    """The folder a metrics file speaks for; the file's own name stays where it is not the usual one."""
    resolved = metrics_file.resolve()
    return resolved.parent if resolved.name == METRICS_NAME else resolved.with_suffix("")


def distinct_tails(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The last parts of each path, as few as tell them all apart: ``a/run, b/run`` -> ``a/run, b/run``."""
    longest = max((len(parts) for parts in paths), default=0)
    for count in range(1, longest + 1):
        tails = ["/".join(parts[-count:]) for parts in paths]
        if len(set(tails)) == len(set(paths)):
            return tails
    return ["/".join(parts) for parts in paths]


def _by_validation_set(records: list[dict[str, Any]]) -> dict[str, Columns]:
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("kind") == "val":
            sets.setdefault(str(record.get("name", "default")), []).append(record)
    return {name: to_columns(members) for name, members in sets.items()}


def to_columns(records: Iterable[dict[str, Any]]) -> Columns:
    """One array a numeric key, ordered by step, the last record of a step winning; ``{}`` for no records."""
    by_step = {record["step"]: record for record in records}
    ordered = [by_step[step] for step in sorted(by_step)]
    if not ordered:
        return {}
    names = {name: None for record in ordered for name, value in record.items() if _is_number(value)}
    columns = {name: np.array([_as_float(record.get(name)) for record in ordered]) for name in names}
    columns["step"] = np.array([record["step"] for record in ordered], dtype=np.int64)
    return columns


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _as_float(value: Any) -> float:
    try:
        return float(value) if _is_number(value) else float("nan")
    except OverflowError:  # a whole number of hundreds of digits
        return float("nan")
