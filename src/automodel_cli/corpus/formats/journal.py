"""``progress.json``: how far an interrupted run came, so that the same command goes on from there.

For Megatron's files, of which several runs may share a folder, it is ``PREFIX.progress.json``.

| key      | value                                                                                     |
|----------|-------------------------------------------------------------------------------------------|
| format   | "automodel-progress/1"                                                                    |
| plan     | everything that decides the bytes: options, tokenizer fingerprint, input identity         |
| phase    | "write"; with shuffle "gather" then "write"; with ``--shards`` "write" then "divide";     |
|          | "parts": a run in tasks, whose state is in the folder ``.work``                           |
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
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from automodel_cli.errors import AutomodelError
from automodel_cli.files import names_format, read_manifest, write_manifest
from automodel_cli.json_files import Count, FileModel, Items, validated

PROGRESS_NAME = "progress.json"
FORMAT = "automodel-progress/1"
EVERY_TOKENS = 1 << 26  # 128 MiB of uint16: seconds of work (of a download: half a minute), and one fsync
Phase = Literal["gather", "write", "divide", "parts"]


@dataclass
class Position:
    """How far a run has come; ``cursor`` and ``writer`` are None at the very start of a phase."""

    phase: Phase = "write"
    cursor: dict[str, Any] | None = None
    rows: int = 0
    bad: dict[str, Any] = field(default_factory=lambda: {"count": 0, "first": []})
    writer: dict[str, Any] | None = None


class _Strict(FileModel):
    """Keys that are not known would not be kept."""

    model_config = ConfigDict(extra="forbid")


class _InFiles(_Strict):
    file: Count
    at: Count
    row: Count = 0


class _InHub(_Strict):
    at: Count
    state: dict[str, Any]


class _InBuckets(_Strict):
    key: Annotated[int, Field(ge=0, lt=2**64)]


class _Bad(_Strict):
    count: Count
    first: Items[str]


class _Body(_Strict):
    """The file without format and hash; the writers check their states themselves."""

    plan: Annotated[dict[Literal["options", "source", "tokenizer"], dict[str, Any]], Field(min_length=3)]
    phase: Phase
    cursor: _InFiles | _InHub | _InBuckets | Annotated[dict[str, Any], Field(max_length=0)] | None
    rows: Count
    bad: _Bad
    writer: dict[str, Any] | None


def write_progress(folder: Path, plan: dict[str, Any], position: Position, name: str = PROGRESS_NAME) -> None:
    """Publish where a later run would go on."""
    write_manifest(folder / name, {"format": FORMAT, "plan": plan, **position.__dict__})


def read_progress(folder: Path, name: str = PROGRESS_NAME) -> tuple[dict[str, Any], Position] | None:
    """The plan and position of an interrupted run; None without one, or if its file is not what we wrote."""
    try:
        body = read_manifest(folder / name)
        if body.pop("format", None) != FORMAT:
            return None
        del body["self"]
        known = validated(body, _Body, folder / name)
    except AutomodelError:
        return None
    plan = body.pop("plan")
    shuffled, in_buckets = bool(plan["options"].get("shuffle")), isinstance(known.cursor, _InBuckets)
    if known.phase == "write" and known.cursor is not None and in_buckets != shuffled:
        return None
    return plan, Position(**body)


def unfinished(folder: Path) -> list[Path]:
    """Journals of runs in ``folder`` that were interrupted, or are under way: those without the manifest."""
    found = sorted(folder.glob(f"*{PROGRESS_NAME}")) if folder.is_dir() else []
    manifests = {path: path.name.removesuffix(PROGRESS_NAME) + "manifest.json" for path in found}
    return [path for path in found if names_format(path, FORMAT) and not (folder / manifests[path]).exists()]


def interrupted_in_words(journal: Path) -> str:
    """What is wrong where :func:`unfinished` finds something."""
    return f"{journal} is of an interrupted run, whose files are not all here: run its command again"


def remove_progress(folder: Path, name: str = PROGRESS_NAME) -> None:
    """The run is complete."""
    (folder / name).unlink(missing_ok=True)
