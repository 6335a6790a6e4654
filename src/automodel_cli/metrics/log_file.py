"""The file ``metrics.jsonl``: its lines, how they are sealed and checked, appended, repaired and moved aside.

``metrics.jsonl`` in the run folder, one JSON object a line, UTF-8, flushed as it is written::

    {"kind": "train", "step": 1, "time": "2025-01-31T12:00:00.000Z", "loss": 10.9521, "lr": 6.08e-05, ...}
    {"kind": "val", "step": 100, "time": "...", "name": "default", "loss": 3.2, "perplexity": 24.5, ...}

JSON has no NaN or infinity: such a number is written as null and named under ``"nonfinite"``, so that
``{"loss": null, "nonfinite": {"loss": "nan"}}`` reads back as it was. A kill can tear the last line; it is
repaired when the file is opened again. A resume moves what lies past its checkpoint to
``metrics.superseded.jsonl`` (``rewind``), so each step appears once and no line is lost.

The last key of a line, ``"xxh3"``, is the hash of the line without it; ``check_lines`` says which lines do not hold.
Lines of earlier versions have none.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field

from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file, disk_errors_named
from automodel_cli.json_files import Count, FileModel, open_to_read, parse_json, validated

METRICS_NAME = "metrics.jsonl"
SUPERSEDED_NAME = "metrics.superseded.jsonl"
MAX_LINE_BYTES = 16 << 20
"""A longer line is no record."""
Record = Mapping[str, Any]


def json_safe(record: Record) -> dict[str, Any]:
    """``record`` with NaN and infinities as None, their names and kinds under ``"nonfinite"``; nested ones too."""
    odd = {key: str(value) for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    clean = {key: (None if key in odd else _inner_safe(value)) for key, value in record.items()}
    return {**clean, "nonfinite": odd} if odd else clean


def _inner_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json_safe(value)
    return [_inner_safe(item) for item in value] if isinstance(value, list) else value


def encode_record(record: Record) -> bytes:
    """One line of ``metrics.jsonl``, newline included."""
    body = json.dumps(json_safe(record), ensure_ascii=False, allow_nan=False).encode()
    return body[:-1] + _seal(body) + b"\n"


def _seal(body: bytes) -> bytes:
    """The end of a line: the hash of ``body`` (its closing brace included) as one more key."""
    return b', "xxh3": "%s"}' % xxhash.xxh3_64(body).hexdigest().encode()


_SEAL_LIKE = _seal(b"{}")
_MOST_DAMAGED = 4  # bytes of a seal that may differ for it still to be taken for one


def is_sound(line: bytes) -> bool | None:
    """Whether a line is what was written; None where it carries no hash."""
    end = line[-len(_SEAL_LIKE) :]
    body = line[: -len(_SEAL_LIKE)] + b"}"
    if end == _seal(body):
        return True
    fixed = [i for i in range(len(_SEAL_LIKE)) if not len(b', "xxh3": "') <= i < len(_SEAL_LIKE) - 2]
    odd = sum(end[i : i + 1] != _SEAL_LIKE[i : i + 1] for i in fixed)
    return False if odd <= _MOST_DAMAGED else None


class _Line(FileModel):
    """What a line holds in any case; the rest may be anything."""

    step: Count
    kind: str = "train"
    nonfinite: dict[str, Any] = Field(default_factory=dict)


_LINE_KEYS = tuple(_Line.model_fields)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The record of one line, NaN and infinities restored; None where the line is torn or not a record."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        record = parse_json(line, METRICS_NAME)
        if not isinstance(record, dict):
            return None
        validated({key: record[key] for key in _LINE_KEYS if key in record}, _Line, METRICS_NAME)
    except DataError:
        return None
    odd = record.pop("nonfinite", {})
    record.pop("xxh3", None)
    if not odd.keys().isdisjoint(_LINE_KEYS):  # a step is a number in any case
        return None
    record.update({key: float(kind) for key, kind in odd.items() if kind in ("nan", "inf", "-inf")})
    return record


@dataclass(frozen=True)
class LinesChecked:
    """What the hashes of a file's lines say; lines are counted from 1.

    Attributes:
        lines: all there are, a torn last one not counted.
        damaged: numbers of those that are not what was written.
        without_hash: how many carry none: an earlier version wrote them.
        torn: the last line was not finished, as a kill leaves it.
    """

    lines: int
    damaged: list[int]
    without_hash: int
    torn: bool


def check_lines(path: Path) -> LinesChecked:
    """Compare each line with the hash it carries.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    verdicts: list[bool | None] = []
    torn = False
    for line, ended in lines_of(path):
        if ended:
            verdicts.append(is_sound(line) if decode_line(line) is not None else False)
        elif is_sound(line) or decode_line(line) is not None:
            verdicts.append(is_sound(line))  # whole, only its newline was not written
        elif is_sound(line[:-1]) or decode_line(line[:-1]) is not None:
            verdicts.append(False)  # a kill cuts a line off; here something else stands for its newline
        else:
            torn = True
    first = next((i for i, verdict in enumerate(verdicts) if verdict is not None), len(verdicts))
    damaged = [i for i, verdict in enumerate(verdicts, 1) if verdict is False or (verdict is None and i > first)]
    return LinesChecked(len(verdicts), damaged, first, torn)


def lines_of(path: Path, block_bytes: int = 1 << 20) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file without their newlines, empty ones left out, and whether each had one.

    Of a line longer than ``MAX_LINE_BYTES`` the beginning is given: it is no record anyway.

    Raises:
        DataError: there is no such file, or it is no regular one.
    """
    try:
        with open_to_read(path) as handle:
            rest = b""
            while block := handle.read(block_bytes):
                *whole, rest = (rest + block).split(b"\n")
                yield from ((line, True) for line in whole if line)
                rest = rest[: MAX_LINE_BYTES + 1]
            if rest:
                yield rest, False
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "name a run folder, or its metrics.jsonl") from None


class AppendFile:
    """Appends whole lines to ``path``; each one reaches the kernel before ``append`` returns.

    A full disk must not end a training run over a log line: lines that could not be written wait in memory
    and go out with the next one; the first failure warns, and ``close`` raises if any are still waiting.
    """

    def __init__(self, path: Path) -> None:
        with disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is a pipe, device or folder, expected a regular file", "move it away")
            repair_tail(path)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._path = path
        self._waiting = b""
        self._warned = False

    def append(self, line: bytes) -> None:
        self._waiting += line
        try:
            self._write_waiting()
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    f"cannot write {self._path} ({error.strerror}); lines are kept until it works",
                    stacklevel=2,
                )
            self._warned = True

    def _write_waiting(self) -> None:
        while self._waiting:  # a disk that fills up inside a line leaves the rest of that line waiting
            written = os.write(self._descriptor, self._waiting)
            self._waiting = self._waiting[written:]

    def close(self) -> None:
        """Write what waits, make it durable. Closing twice is harmless."""
        if self._descriptor < 0:
            return
        try:
            with disk_errors_named(self._path):
                self._write_waiting()
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def repair_tail(path: Path) -> None:
    """Mend what a kill left at the end of ``path``: finish a whole record's line, cut a torn one off."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as handle:
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.rfind(b"\n") + 1
            tail = content[start : start + MAX_LINE_BYTES + 1]
        if tail and decode_line(tail) is not None:
            handle.seek(0, os.SEEK_END)
            handle.write(b"\n")
        elif tail:
            handle.truncate(start)


def rewind(run_folder: Path | str, step: int) -> int:
    """Move the records past ``step`` to ``metrics.superseded.jsonl``; return how many moved.

    A run that begins (``step`` 0) moves all of them: the validation before its first update is made anew.

    Both files are replaced by renames, the superseded one first, so a kill at any instant loses nothing.
    A kill between the two leaves records in both; the next call does not append them a second time.
    Lines that are no record (a torn write of a lost power supply) move too. What tells that the run went back to
    before ``step`` (``rewound_to``) stays, whatever step it went back from.
    """
    folder = Path(run_folder)
    source = folder / METRICS_NAME
    if not source.exists():
        return 0
    kept: list[bytes] = []
    moved: list[bytes] = []
    for line, _ in lines_of(source):
        record = decode_line(line)
        (kept if record is not None and _came_before(record, step) else moved).append(line)
    if moved:
        superseded = folder / SUPERSEDED_NAME
        earlier = [line for line, _ in lines_of(superseded)] if superseded.exists() else []
        known = set(earlier)  # every record carries its time: an equal line is the same record
        new = [line for line in moved if line not in known]
        for path, lines in ((superseded, earlier + new), (source, kept)):
            with atomic_file(path) as handle:
                handle.writelines(line + b"\n" for line in lines)
    return len(moved)


def _came_before(record: Record, step: int) -> bool:
    """Whether a record is of the time before ``step`` was reached; one of going back is of where that led."""
    back_to = record.get("rewound_to")
    return step > 0 and (step >= record["step"] or (isinstance(back_to, int) and back_to < step))


def metrics_path(run: Path | str) -> Path:
    """``metrics.jsonl`` of a run folder, or the file itself where that is what was named.

    Raises:
        DataError: there is none.
    """
    path = Path(run)
    found = path / METRICS_NAME if path.is_dir() else path
    if not found.is_file():
        raise DataError(
            f"{found} does not exist",
            "name a run folder (the checkpoint_dir of a run) or a metrics.jsonl file",
        )
    return found
