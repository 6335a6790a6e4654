"""What every `automodel preprocess` command shows while it works, and of the rows it left out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from automodel_cli.cli import console

if TYPE_CHECKING:
    from automodel_cli.corpus.pipeline import Progress

_TITLES = {
    "characters": "finding characters",
    "counting": "counting tokens",
    "gathering": "tokenizing",
    "writing": "writing tokens",
    "reading": "reading text",
    "dividing": "dividing into shards",
    "scattering": "reading documents",
    "comparing": "finding duplicates",
    "joining": "writing documents",
}


_UNITS = {"comparing": "documents"}  # of phases that do not read text


class Bars:
    """A bar for each phase of a run, from the recipe's ``Progress`` events."""

    def __init__(self) -> None:
        self._phase = ""
        self._bar: console.Progress | None = None
        self._started_s = self._last_event_s = time.monotonic()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, event: Progress) -> None:
        if event.phase != self._phase:
            self.__exit__()
            # The first event of a phase comes after its first piece of work, so it began when the last one ended.
            self._phase, self._started_s = event.phase, self._last_event_s
            unit = "tokens" if event.tokens_wanted else _UNITS.get(event.phase, "bytes")
            self._bar = console.Progress(_TITLES[event.phase], unit=unit)
        assert self._bar is not None
        self._last_event_s = time.monotonic()
        elapsed_s = max(self._last_event_s - self._started_s, 1e-6)
        if event.tokens_wanted:
            done, wanted = event.tokens, event.tokens_wanted
        else:
            done, wanted = event.text_bytes, event.bytes_wanted or 0
        parts = []
        if event.phase not in _UNITS:
            parts += [f"{event.documents:,} documents", f"{event.tokens:,} tokens" if event.tokens else ""]
            parts += [f"{event.text_bytes / elapsed_s / 1e6:,.1f} MB/s"]
        if 0 < done < wanted and not console.is_terminal():
            parts.append(f"ETA {duration(elapsed_s * (wanted - done) / done)}")
        if event.bad_rows:
            parts.append(f"{event.bad_rows:,} bad rows")
        self._bar(min(done, wanted) if wanted else done, wanted, ", ".join(part for part in parts if part))


def duration(seconds: float) -> str:
    """``1h05m`` or ``3m07s``."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def show_bad_rows(count: int, first: list[str]) -> None:
    """A warning for each of the ``first`` ones, and for how many more there were."""
    for line in first:
        console.warn(f"bad row {line}")
    if count > len(first) > 0:
        console.warn(f"and {count - len(first):,} more bad rows")
