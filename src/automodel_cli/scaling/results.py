"""Result rows of a sweep: ``results.jsonl``, one JSON object a line for each run that ended.

    {"format": "automodel-sweep/1", "id": "d6_1e17_s1", "status": "finished", "budget": 1e17, "depth": 6, ...}

The file is only ever appended to. A line is written whole and flushed to the disk; one that was cut off by a kill
has no line end and is not a row. Of several rows with one ``id`` (a failed run that was tried again) the last counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, parse_json, read_bytes, validated

RESULTS_NAME = "results.jsonl"
FORMAT = "automodel-sweep/1"
_BEGINNING = b'{"format":'
_HINT = "name a sweep's folder or its results.jsonl; a line that is damaged may be deleted"

Above0 = Annotated[FiniteFloat, Field(gt=0)]
AtLeast1 = Annotated[Count, Field(ge=1)]


class ResultRow(FileModel):
    """One run of a sweep. Parameters are counted in three ways, each without the padding of the vocabulary.

    Attributes:
        id: name of the run's folder; the same settings give the same id.
        error: of a failed run, its message; the numbers below are null where the run did not come to them.
        settings: what the sweep set, by dotted key.
        recipe: a hash of what the runs of one sweep have in common: the base file's content and what is set in all.
        budget: FLOPs the run was planned for; null: it had another horizon.
        params_total: all parameters.
        params_non_embedding: without token and position embeddings (and without the head where it is tied to them).
        params_scaling: weights that multiply every token: the matrices of the blocks and the head, tied or not.
        flops_per_token: forward and backward.
        tokens, steps: trained on; updates done.
        val_loss, val_bpb: at the end, in nats per token and bits per byte.
        core: CORE, where it was asked for.
        wall_s: from the start of the process to its end.
        compute_s: spent in updates, without compilation, validation and saving.
        step_s: median time of an update.
        mfu: mean share of the device's peak.
    """

    format: Literal["automodel-sweep/1"]
    id: Annotated[str, Field(min_length=1, max_length=200)]
    status: Literal["finished", "failed"]
    error: str | None = None
    settings: dict[str, Any] | None = None
    recipe: Annotated[str, Field(max_length=64)] | None = None
    seed: int | None = None
    budget: Above0 | None = None
    depth: AtLeast1 | None = None
    params_total: AtLeast1 | None = None
    params_non_embedding: AtLeast1 | None = None
    params_scaling: AtLeast1 | None = None
    flops_per_token: Above0 | None = None
    tokens: AtLeast1 | None = None
    steps: AtLeast1 | None = None
    val_loss: Above0 | None = None
    val_bpb: Above0 | None = None
    core: FiniteFloat | None = None
    wall_s: Above0 | None = None
    compute_s: Above0 | None = None
    step_s: Above0 | None = None
    mfu: Above0 | None = None


def append_row(folder: Path, row: ResultRow) -> None:
    """Add ``row`` to the results of the sweep in ``folder``, on a line of its own even after one that was cut off."""
    with (folder / RESULTS_NAME).open("a+b") as handle:
        handle.seek(0, os.SEEK_END)
        size = handle.tell()
        cut_off = size and os.pread(handle.fileno(), 1, size - 1) != b"\n"
        handle.write(b"\n" * bool(cut_off) + row.model_dump_json(exclude_none=True).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_rows(path: Path) -> dict[int, ResultRow]:
    """The rows of a results file by line number (from 1), the last of each id, in the order of the file.

    Raises:
        DataError: the file cannot be read, or a whole line is no row of this format.
    """
    lines = read_bytes(path, hint=_HINT).split(b"\n")
    last: dict[str, tuple[int, ResultRow]] = {}
    for number, line in enumerate(lines, start=1):
        if row := _row(line, f"{path}, line {number}", whole=number < len(lines)):
            last[row.id] = number, row
    return dict(sorted(last.values(), key=lambda item: item[0]))


def _row(line: bytes, where: str, *, whole: bool) -> ResultRow | None:
    """The row on a line; None of an empty line and of one that a kill cut off."""
    if not line.strip():
        return None
    try:
        return validated(parse_json(line, where, hint=_HINT), ResultRow, where, hint=_HINT)
    except DataError:
        if whole and not _was_cut_off(line):
            raise
        return None


def _was_cut_off(line: bytes) -> bool:
    """A row that a kill cut off and that others were appended behind: it begins as one and does not end as one."""
    return _BEGINNING.startswith(line[: len(_BEGINNING)]) and not line.rstrip().endswith(b"}")
