"""``progress.json``: how far an interrupted run came, so that the same command goes on from there.

For Megatron's files, of which several runs may share a folder, it is ``PREFIX.progress.json``.

| key      | value                                                                                     |
|----------|-------------------------------------------------------------------------------------------|
| format   | "automodel-progress/1"                                                                    |
| plan     | everything that decides the bytes: options, tokenizer fingerprint, input identity         |
| phase    | "write"; with shuffle "gather" then "write"; with ``--shards`` "write" then "divide"      |
| cursor   | where in the source (or the shuffled buckets) to go on                                    |
| rows     | rows of the current file before the cursor, for the line numbers of bad rows              |
| bad      | {count, first: [text]} so far                                                             |
| writer   | state of the writer: shards done, and how much of the open temporaries counts             |
| self     | hash of all this                                                                          |

It is written at the start of a run and then each time a shard is finished (and every ``EVERY_TOKENS``), after
what it speaks of is durable; it goes when the manifest is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from automodel_cli.errors import AutomodelError
from automodel_cli.files import read_manifest, write_manifest

PROGRESS_NAME = "progress.json"
FORMAT = "automodel-progress/1"
EVERY_TOKENS = 1 << 26  # 128 MiB of uint16: seconds of work (of a download: half a minute), and one fsync
Phase = Literal["gather", "write", "divide"]


@dataclass
class Position:
    """How far a run has come; ``cursor`` and ``writer`` are None at the very start of a phase."""

    phase: Phase = "write"
    cursor: dict[str, Any] | None = None
    rows: int = 0
    bad: dict[str, Any] = field(default_factory=lambda: {"count": 0, "first": []})
    writer: dict[str, Any] | None = None


def write_progress(folder: Path, plan: dict[str, Any], position: Position, name: str = PROGRESS_NAME) -> None:
    """Publish where a later run would go on."""
    write_manifest(folder / name, {"format": FORMAT, "plan": plan, **position.__dict__})


def read_progress(folder: Path, name: str = PROGRESS_NAME) -> tuple[dict[str, Any], Position] | None:
    """The plan and position of an interrupted run; None without one, or if its file is not what we wrote."""
    try:
        body = read_manifest(folder / name)
    except AutomodelError:
        return None
    if body.pop("format", None) != FORMAT:
        return None
    del body["self"]
    plan = body.pop("plan")
    return plan, Position(**body)


def remove_progress(folder: Path, name: str = PROGRESS_NAME) -> None:
    """The run is complete."""
    (folder / name).unlink(missing_ok=True)
