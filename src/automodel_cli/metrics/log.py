"""The numbers of a run, as they happen: a console line, ``metrics.jsonl`` (``log_file``), and trackers where wanted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from automodel_cli.metrics.lines import CLASSIC, Lines
from automodel_cli.metrics.log_file import METRICS_NAME, AppendFile, Record, encode_record, rewind


class RemoteLog(Protocol):
    """Where records go besides the run folder (``trackers``). It must never raise into training, nor make it wait."""

    def log(self, prefix: str, record: Record) -> None: ...

    def rewind(self, step: int) -> None: ...

    def close(self, *, ok: bool) -> None: ...


def remote_prefix(kind: str, record: Record, every_steps: int) -> str | None:
    """What a record's numbers are called at trackers, ``train/loss``; None: it does not go there.

    ``every_steps``: of the updates, each so many and the first.
    """
    if kind == "train":
        return kind if record["step"] == 1 or record["step"] % every_steps == 0 else None
    if kind == "val":
        name = record.get("name", "default")
        return kind if name == "default" else f"val_{name}"
    return kind if kind == "eval" else None


class MetricsLog:
    """Sends each record to the console, to ``metrics.jsonl`` and to trackers, as far as these are given.

    Records are plain Python numbers; whoever calls has already fetched them from the device, at a moment of
    its choice. ``run_folder=None`` writes no file; ``MetricsLog(None)`` is what all ranks but the first hold.
    Call ``rewind`` before opening the log of a resumed run.
    """

    def __init__(
        self,
        run_folder: Path | str | None,
        *,
        remote: RemoteLog | None = None,
        console: Callable[[str], None] | None = None,
        lines: Lines = CLASSIC,
        remote_every_steps: int = 1,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = Path(run_folder) if run_folder is not None else None
        self._file = AppendFile(self._folder / METRICS_NAME) if self._folder is not None else None
        self._remote = remote
        self._console, self._lines = console, lines
        self._remote_every_steps = remote_every_steps
        self._now = now

    def train(self, record: Record) -> None:
        """Log one update; the keys are those of ``metrics.lines`` and any others."""
        self._send("train", record, line=self._lines.train)

    def validation(self, record: Record) -> None:
        """Log one validation pass; the keys are those of ``metrics.lines`` and any others."""
        self._send("val", record, line=self._lines.val)

    def evaluation(self, record: Record) -> None:
        """Log one evaluation on tasks; the keys are those of ``metrics.lines`` and any others."""
        self._send("eval", record, line=self._lines.eval)

    def event(self, kind: str, record: Record) -> None:
        """Log what happened at a step, in the file alone."""
        if self._file is not None:
            self._file.append(self._encoded(kind, record))

    def rewind(self, step: int) -> None:
        """Set aside what was logged past ``step``, to which the run has gone back."""
        if self._file is not None and self._folder is not None:
            self._file.close()
            rewind(self._folder, step)
            self._file = AppendFile(self._folder / METRICS_NAME)
        if self._remote is not None:
            self._remote.rewind(step)

    def _encoded(self, kind: str, record: Record) -> bytes:
        time = self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return encode_record({"kind": kind, "step": record["step"], "time": time, **record})

    def _send(self, kind: str, record: Record, *, line: Callable[[Record], str]) -> None:
        if self._file is not None:
            self._file.append(self._encoded(kind, record))
        if self._console is not None:
            self._console(line(record))
        if self._remote is not None and (prefix := remote_prefix(kind, record, self._remote_every_steps)):
            self._remote.log(prefix, record)

    def close(self, *, ok: bool = True) -> None:
        """Finish the file and the trackers' runs; ``ok=False`` marks the latter as failed."""
        try:
            if self._file is not None:
                self._file.close()
        finally:
            if self._remote is not None:
                self._remote.close(ok=ok)
