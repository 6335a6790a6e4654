"""What a tool has not received of a run that goes on: read from ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from automodel_cli.metrics.log import remote_prefix
from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, lines_of
from automodel_cli.metrics.trackers.interface import Entry


def missed_entries(run_folder: Path, *, after: int, until: int, every_steps: int) -> Iterator[Entry]:
    """Entries of steps past ``after`` up to ``until``, in the order of the file.

    ``every_steps``: of the updates, each so many and the first (``remote_prefix``).
    """
    path = run_folder / METRICS_NAME
    if not after < until or until == 0 or not path.is_file():  # of a run that begins anew, nothing
        return
    for line, _ in lines_of(path):
        record = decode_line(line)
        if record is None or record["step"] <= after:
            continue
        if record["step"] > until:  # the run has gone on meanwhile
            return
        kind = record.pop("kind", "train")
        if prefix := remote_prefix(kind, record, every_steps):
            yield Entry(prefix, record, _seconds(record.pop("time", None)))


def _seconds(time: object) -> float:
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return 0.0
