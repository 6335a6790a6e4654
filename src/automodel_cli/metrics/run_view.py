"""What the log of one run says, kept up to date: curves by part, events, samples. All readers of a log share it.

A *part* is what is measured together, a table each: ``train``, ``val/NAME`` for each validation set, and ``eval``.
Records of other kinds are events, shown with what they say. What a record does not say is not guessed, with two
exceptions that the log is certain of: an ``eta_s`` that goes missing means a new process (the first interval of a
process has none), and lines in ``metrics.superseded.jsonl`` are steps that were made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.metrics.downsample import Curve, shown_rows, thin
from automodel_cli.metrics.follow import Follower, News
from automodel_cli.metrics.log_file import METRICS_NAME, SUPERSEDED_NAME
from automodel_cli.metrics.table import TIME, Table, seconds
from automodel_cli.text import clock

AXES = ("step", "tokens", "time")
"""What may be on the x axis: updates, tokens seen, seconds since the first record."""
TRAIN = "train"
_PARTS = {"train", "val", "eval"}
_MOST_PARTS = 200
_MOST_EVENTS = 1000
_MOST_SAMPLES = 60  # evaluations whose texts are kept
_SAMPLES_OF_ONE = 32
_LONGEST_TEXT = 4000
_SHOWN_FIELDS = 12
_MOST_NUMBERS = 400  # of a last record
_PAUSE_S = 120.0  # less between two records is no pause
_PAUSE_INTERVALS = 30
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Added:
    """Rows that have come at the end of a part."""

    part: str
    first: int
    rows: int


@dataclass(frozen=True)
class Changes:
    """What a call of :meth:`RunView.update` has changed.

    Attributes:
        restarted: curves are others now, earlier rows included.
        said: there are new events or samples.
        more: ask again at once.
    """

    restarted: bool = False
    added: list[Added] = field(default_factory=list)
    said: bool = False
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.restarted or self.added or self.said)


class RunView:
    """The log in a run folder.

    Attributes:
        generation: counts how often earlier rows have changed: what was taken of another generation is void.
        parts: tables by the names of parts.
    """

    def __init__(self, folder: Path, *, block_bytes: int = 1 << 20) -> None:
        limits: dict[str, Any] = {"inside": folder, "block_bytes": block_bytes}
        self._log = Follower(folder / METRICS_NAME, **limits)
        self._superseded = Follower(folder / SUPERSEDED_NAME, **limits)
        self.generation = 0
        self._forget()
        self._redone: list[tuple[int, int, float]] = []  # first and last step, time of the last

    def _forget(self) -> None:
        self.parts: dict[str, Table] = {}
        self._told: list[dict[str, Any]] = []
        self._samples: list[dict[str, Any]] = []
        self.last: dict[str, dict[str, Any]] = {}

    @property
    def skipped_lines(self) -> int:
        """Lines of the log that are no record, or not the one that was written."""
        return self._log.skipped_lines

    # ------------------------------------------------------------------------------------------ reading

    def update(self) -> Changes:
        """Take what has come, up to a block."""
        aside = self._superseded.read()
        self._note_superseded(aside)
        news = self._log.read()
        if news.restarted:
            self.generation += 1
            self._forget()
        added, in_order, said = self._take(news.records)
        self.generation += not in_order
        restarted = news.restarted or not in_order
        said = said or restarted or aside.restarted or bool(aside.records)
        return Changes(restarted, [] if restarted else added, said, news.more or aside.more)

    def read_all(self) -> RunView:
        """Take all there is."""
        while self.update().more:
            pass
        return self

    def _take(self, records: Sequence[Record]) -> tuple[list[Added], bool, bool]:
        by_part: dict[str, list[Record]] = {}
        said = False
        for record in records:
            if (part := _part_of(record)) is None:
                self._told.append(_event_of(record))
                said = True
            elif part in self.parts or part in by_part or len(self.parts) + len(by_part) < _MOST_PARTS:
                by_part.setdefault(part, []).append(record)
            if isinstance(record.get("samples"), list):
                self._samples.append(_samples_of(record))
                said = True
        del self._told[:-_MOST_EVENTS], self._samples[:-_MOST_SAMPLES]
        added, in_order = [], True
        for part, members in by_part.items():
            table = self.parts.setdefault(part, Table())
            first = table.rows
            in_order &= table.append(members)
            added.append(Added(part, first, table.rows))
            self.last[part] = _numbers_of(members[-1])
        return added, in_order, said

    def _note_superseded(self, news: News) -> None:
        if news.restarted:
            self._redone = []
        for record in news.records:
            if record.get("kind", TRAIN) != TRAIN:
                continue
            step, time = record["step"], seconds(record.get(TIME))
            if self._redone and step > self._redone[-1][1]:
                self._redone[-1] = (self._redone[-1][0], step, time)
            else:
                self._redone.append((step, step, time))
        del self._redone[:-_MOST_EVENTS]

    # ------------------------------------------------------------------------------------------ curves

    def x_of(self, part: str, axis: str) -> np.ndarray:
        """The x values of a part's rows, ascending; an axis of :data:`AXES`."""
        table = self.parts[part]
        if axis == "time":
            return _ascending(table.column(TIME) - self.begun)
        if axis == "tokens":
            train = self.parts.get(TRAIN)
            if train is None or not train.rows:
                return np.zeros(table.rows)
            seen = _ascending(train.column("tokens_seen"))
            return seen if part == TRAIN else np.interp(table.step, train.step, seen, left=0.0)
        return table.step.astype(np.float64)

    @property
    def begun(self) -> float:
        """Time of the first record, seconds since 1970; NaN where there is none."""
        first = [table.column(TIME)[0] for table in self.parts.values() if table.rows]
        return min((time for time in first if math.isfinite(time)), default=math.nan)

    def curves(
        self,
        part: str,
        axis: str = "step",
        *,
        low: float | None = None,
        high: float | None = None,
        buckets: int = 600,
        log_x: bool = False,
    ) -> dict[str, Curve]:
        """The columns of a part, thinned for a screen of ``buckets`` pixels from ``low`` to ``high``."""
        x = self.x_of(part, axis)
        rows = shown_rows(x, low, high)
        x = x[rows]
        with np.errstate(all="ignore"):  # of numbers at the end of what a double can hold
            return {name: thin(x, y, buckets, log_x=log_x) for name, y in self.columns(part, rows).items()}

    def columns(self, part: str, rows: slice) -> dict[str, np.ndarray]:
        """What there are curves of, in these rows; ``step_s``, the seconds of an update, is worked out."""
        table = self.parts[part]
        found = {name: table.column(name)[rows] for name in table.names if name not in (TIME, *_NO_CURVES)}
        if "tps" in found and "tokens_seen" in table.names:
            with np.errstate(all="ignore"):  # no token in a second
                found["step_s"] = _tokens_per_update(table, rows) / found["tps"]
        return found

    # ------------------------------------------------------------------------------------------ texts

    def samples(self) -> list[dict[str, Any]]:
        """Generated texts by step, the newest last: ``step``, ``time``, and ``texts`` with ``prompt`` and ``text``."""
        return list(self._samples)

    def events(self) -> list[dict[str, Any]]:
        """What has happened, by step: ``step``, ``time`` (seconds since 1970 or None), ``kind``, ``text``."""
        found = [*self._told, *self._redone_events(), *self._train_events()]
        found.sort(key=lambda event: (event["step"], event["time"] or 0.0))
        return found[-_MOST_EVENTS:]

    def data_events(self, known: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Events of ``changes`` that came after so many tokens, where the log has counted as ``known`` says it must.

        A run that cuts its rows shorter at first counts otherwise: of that no step is known.
        """
        table = self.parts.get(TRAIN)
        if table is None or not known:
            return []
        tokens, row = table.column("tokens_seen"), int(np.searchsorted(table.step, known["step"]))
        if row >= table.rows or table.step[row] != known["step"] or tokens[row] != known["tokens"]:
            return []
        rows = [(int(np.argmax(tokens > change["tokens"])), change["text"]) for change in known["changes"]]
        times = table.column(TIME)
        return [_event(int(table.step[row]), times[row], "data", text) for row, text in rows]

    def _redone_events(self) -> list[dict[str, Any]]:
        return [
            _event(first, time, "resume", f"steps {first:,} to {last:,} were made again from a checkpoint")
            for first, last, time in self._redone
        ]

    def _train_events(self) -> list[dict[str, Any]]:
        table = self.parts.get(TRAIN)
        if table is None or not table.rows:
            return []
        times, steps = table.column(TIME), table.step
        skipped = np.flatnonzero(table.column("skipped") == 1.0)
        found = [
            _event(int(steps[row]), times[row], "skip", "skipped: loss or gradient was not finite")
            for row in skipped[-_MOST_EVENTS:]
        ]
        eta = np.isnan(table.column("eta_s"))
        started = 1 + np.flatnonzero(eta[1:] & ~eta[:-1])
        gaps = np.diff(times)
        known = gaps[np.isfinite(gaps)]
        long = max(_PAUSE_S, _PAUSE_INTERVALS * float(np.median(known))) if known.size else math.inf
        paused = 1 + np.flatnonzero(gaps > long)
        for row in np.union1d(started, paused)[-_MOST_EVENTS:]:
            gap = f"no record for {clock(gaps[row - 1])}" if row in paused else ""
            what = "a new process goes on" if row in started else ""
            text = " after ".join(filter(None, [what, gap]))
            found.append(_event(int(steps[row]), times[row], "resume" if what else "pause", text))
        return found

    # ------------------------------------------------------------------------------------------ summary

    def summary(self) -> dict[str, Any]:
        """The last numbers of each part, and how much there is: what fits on a line or into ``--json``."""
        return {
            "parts": {name: {"records": table.rows, "last": self.last[name]} for name, table in self.parts.items()},
            "skipped_updates": int((self.parts[TRAIN].column("skipped") == 1.0).sum()) if TRAIN in self.parts else 0,
            "skipped_lines": self.skipped_lines,
            "begun": none_if_odd(self.begun),
            "newest": none_if_odd(max((seconds(one.get(TIME)) for one in self.last.values()), default=math.nan)),
        }


_NO_CURVES = ("epoch", "skipped", "num_label_tokens", "tokens_seen", "eta_s", "best", "seconds", "bytes", "tokens")


def _tokens_per_update(table: Table, rows: slice) -> np.ndarray:
    """Of the updates since the row before."""
    first, end, _ = rows.indices(table.rows)
    before = max(first - 1, 0)
    tokens, steps = table.column("tokens_seen")[before:end], table.step[before:end].astype(np.float64)
    if not first:
        tokens, steps = np.append(0.0, tokens), np.append(0.0, steps)
    return np.diff(tokens) / np.maximum(np.diff(steps), 1.0)


def none_if_odd(value: float) -> float | None:
    """``value``, or None for NaN and infinities, which JSON has not."""
    return float(value) if math.isfinite(value) else None


def _ascending(values: np.ndarray) -> np.ndarray:
    """``values`` without gaps and steps back: a clock that was set back, a record without a time."""
    return np.maximum.accumulate(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))


def _part_of(record: Record) -> str | None:
    kind = record.get("kind", TRAIN)
    if kind == "val":
        return f"val/{str(record.get('name', 'default'))[:100]}"
    return kind if kind in _PARTS else None


def _numbers_of(record: Record) -> dict[str, Any]:
    """The record without what is long: numbers and short texts, and such mappings."""
    plain = [(key, value) for key, value in record.items() if value is None or isinstance(value, int | float | str)]
    return {key[:100]: _shown(value) for key, value in plain[:_MOST_NUMBERS]}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value[:100]
    return none_if_odd(value) if isinstance(value, float) else value


def _event_of(record: Record) -> dict[str, Any]:
    said = {key: value for key, value in record.items() if key not in ("kind", "step", TIME, "epoch")}
    what = said.pop("event", None)
    fields = [f"{key} {_brief(value)}" for key, value in list(said.items())[:_SHOWN_FIELDS]]
    text = ": ".join(filter(None, [str(what)[:200] if what is not None else "", ", ".join(fields)]))
    return _event(record["step"], seconds(record.get(TIME)), str(record["kind"])[:40], text[:1000])


def _brief(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:200]


def _event(step: int, time: float, kind: str, text: str) -> dict[str, Any]:
    return {"step": step, "time": none_if_odd(float(time)), "kind": kind, "text": text}


def _samples_of(record: Record) -> dict[str, Any]:
    texts = [one for one in record["samples"][:_SAMPLES_OF_ONE] if isinstance(one, dict)]
    return {
        "step": record["step"],
        "time": none_if_odd(seconds(record.get(TIME))),
        "texts": [{key: str(one.get(key, ""))[:_LONGEST_TEXT] for key in ("prompt", "text")} for one in texts],
    }
