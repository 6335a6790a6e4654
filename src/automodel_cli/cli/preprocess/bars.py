"""What every `automodel preprocess` command shows while it works, and of the rows it left out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from automodel_cli.cli import console
from automodel_cli.text import plural

if TYPE_CHECKING:
    from automodel_cli.corpus.build.pipeline import Progress

_TITLES = {
    "characters": "finding characters",
    "counting": "counting tokens",
    "writing": "writing tokens",
    "reading": "reading text",
    "dividing": "dividing into shards",
    "scattering": "reading documents",
    "comparing": "finding duplicates",
    "joining": "writing documents",
    "read": "reading documents",
    "exact": "finding copies",
    "bands": "dividing signatures",
    "near": "comparing candidates",
    "clusters": "finding clusters",
    "write": "writing documents",
}


_TEXTLESS = {
    "comparing",
    "joining",
    "dividing",
    "exact",
    "bands",
    "near",
    "clusters",
}  # phases that do not read the input


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
            self._bar = console.Progress(_TITLES.get(event.phase, event.phase), shows_numbers=False)
        assert self._bar is not None
        self._last_event_s = time.monotonic()
        elapsed_s = max(self._last_event_s - self._started_s, 1e-6)
        parts = [plural(event.documents, "document"), f"{event.tokens:,} tokens" if event.tokens else ""]
        if event.phase not in _TEXTLESS and event.text_bytes:
            parts.append(f"{event.text_bytes / elapsed_s / 1e6:,.1f} MB/s")
        if event.bad_rows:
            parts.append(f"{event.bad_rows:,} bad rows")
        done = share_done(event)
        total = 0 if done is None else _PARTS
        shown = 0 if done is None else int(done * _PARTS)
        self._bar(shown, total, ", ".join(part for part in parts if part))


_PARTS = 1000


def share_done(event: Progress) -> float | None:
    """The part of the phase that is done, 0 to 1: of the tokens that were asked for, or of the input; None: not known.

    The larger of the two: the phase ends with whichever comes first.
    """
    known = [] if event.through is None else [event.through]
    for done, wanted in ((event.tokens, event.tokens_wanted), (event.text_bytes, event.bytes_wanted)):
        if wanted and (not known or wanted == event.tokens_wanted):
            known.append(min(1.0, done / wanted))
    return max(known, default=None)


def show_bad_rows(count: int, first: list[str]) -> None:
    """A warning for each of the ``first`` ones, and for how many more there were."""
    for line in first:
        console.warn(f"bad row {line}")
    if count > len(first) > 0:
        console.warn(f"and {count - len(first):,} more bad rows")
