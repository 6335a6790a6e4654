"""The runs below the folders that were named, each with a name that a page may ask for; no path comes from a page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import nested_runs
from automodel_cli.metrics.downsample import Curve, thin
from automodel_cli.metrics.run_view import TRAIN, Changes, RunView, none_if_odd
from automodel_cli.serving.watch.run_facts import PlanOf, RunFacts, no_plan

MOST_RUNS = 200
_DIGITS = 6
_KEPT_ANSWERS = 8


class WatchedRun:
    """A run: its log and its facts, for one follower and many pages.

    Attributes:
        name: what pages call it.
        reading: its log has not been read to the end yet.
        problem: why it is not followed any more; None: it is.
    """

    def __init__(self, name: str, folder: Path, plan_of: PlanOf = no_plan) -> None:
        self.name, self.folder = name, folder
        self._view, self._facts = RunView(folder), RunFacts(folder, plan_of)
        self._lock = threading.Lock()
        self.reading = True
        self.problem: str | None = None
        self._answers: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]] = {}  # the newest last

    # ------------------------------------------------------------------------------------------ the follower

    def update(self) -> Changes:
        """Take what has come into the log, up to a block."""
        with self._lock:
            changes = self._view.update()
            self.reading = changes.more
            return changes

    def update_facts(self) -> bool:
        """Look into the folder; whether something is different."""
        return self._facts.update()  # one thread calls this, and puts a whole new value

    def read_all(self) -> WatchedRun:
        """Take all there is."""
        self._view.read_all()
        self._facts.update()
        self.reading = False
        return self

    # ------------------------------------------------------------------------------------------ the pages

    def overview(self) -> dict[str, Any]:
        """A line of the list of runs."""
        with self._lock:
            view = self._view
            plan, facts = self._facts.value.get("plan", {}), self._facts.value
            return {
                "run": self.name,
                "generation": view.generation,
                "reading": self.reading,
                "problem": self.problem,
                "training": facts.get("training", False),
                "plan": plan,
                **view.summary(),
            }

    def details(self) -> dict[str, Any]:
        """All that is no curve."""
        facts = self._facts.value
        with self._lock:
            events, samples = self._view.events(), self._view.samples()
            events += self._view.data_events(facts.get("data_changes", {}))
        events += [_saved(save) for save in facts.get("saves", [])]
        events.sort(key=lambda event: (event["step"], event["time"] or 0.0))
        return {**self.overview(), **facts, "folder": str(self.folder), "events": events, "samples": samples}

    def curves(self, axis: str, low: float | None, high: float | None, buckets: int, *, log_x: bool) -> dict[str, Any]:
        """Thinned curves of all parts, with the rows that they are of; many pages ask for the same."""
        key = (axis, low, high, buckets, log_x)
        with self._lock:
            rows = {part: table.rows for part, table in self._view.parts.items()}
            version = (self._view.generation, rows)
            known, answer = self._answers.pop(key, (None, {}))
            if known != version:
                answer = self._curves(axis, low, high, buckets, log_x)
            self._answers[key] = (version, answer)
            if len(self._answers) > _KEPT_ANSWERS:
                del self._answers[next(iter(self._answers))]
            return answer

    def _curves(self, axis: str, low: float | None, high: float | None, buckets: int, log_x: bool) -> dict[str, Any]:
        view = self._view
        parts = {}
        for part, table in view.parts.items():
            x = view.x_of(part, axis)
            curves = view.curves(part, axis, low=low, high=high, buckets=buckets, log_x=log_x)
            parts[part] = {
                "rows": table.rows,
                "x": [float(x[0]), float(x[-1])],
                "curves": {name: _curve(curve) for name, curve in curves.items()},
            }
        begun = none_if_odd(view.begun)
        return {"run": self.name, "generation": view.generation, "axis": axis, "begun": begun, "parts": parts}

    def axes(self, points: int) -> dict[str, list[list[float | None]]]:
        """For each step (of at most two times ``points``) its tokens and its time: the other x axes."""
        with self._lock:
            view = self._view
            if TRAIN not in view.parts:
                return {}
            step = view.x_of(TRAIN, "step")
            thinned = {axis: thin(step, view.x_of(TRAIN, axis), points) for axis in ("tokens", "time")}
            return {axis: [_short(curve.x, digits=9), _short(curve.y, digits=9)] for axis, curve in thinned.items()}

    def rows(self, part: str, first: int, end: int) -> dict[str, Any]:
        """Rows as they are, for pages that have those before."""
        with self._lock:
            view, rows = self._view, slice(first, end)
            x = {axis: view.x_of(part, axis)[rows].tolist() for axis in ("step", "tokens", "time")}
            columns = {name: _short(column) for name, column in view.columns(part, rows).items()}
            return {
                "run": self.name,
                "generation": view.generation,
                "part": part,
                "first": first,
                "rows": end,
                "x": x,
                "columns": columns,
                "last": view.last[part],
            }


def _curve(curve: Curve) -> list[Any]:
    points = [_short(curve.x, digits=9), _short(curve.y)]
    if curve.mean_x is not None and curve.mean_y is not None:
        points += [_short(curve.mean_x, digits=9), _short(curve.mean_y)]
    return points


def _short(values: Any, *, digits: int = _DIGITS) -> list[float | None]:
    """Numbers with as many digits as a screen has pixels; None for what is not finite."""
    form = f"%.{digits}g"
    return [float(form % value) if value - value == 0 else None for value in values.tolist()]


def _saved(save: dict[str, Any]) -> dict[str, Any]:
    marks = f", now {' and '.join(save['marks'])}" if save["marks"] else ""
    return {"step": save["step"], "time": save["time"], "kind": "save", "text": f"checkpoint{marks}"}


def _runs_in(root: Path) -> list[Path]:
    try:
        return [*([root] if nested_runs.is_run(root) else []), *nested_runs.runs_below(root)]
    except OSError:  # gone, or not ours to read
        return []


class RunSet:
    """All runs in and below some folders; new ones are found as they come, and one that is gone is kept.

    Attributes:
        left_out: runs beyond :data:`MOST_RUNS`.
    """

    def __init__(self, folders: Sequence[Path], plan_of: PlanOf = no_plan) -> None:
        self._folders, self._plan_of = list(folders), plan_of
        self._runs: dict[Path, WatchedRun] = {}
        self._by_name: dict[str, WatchedRun] = {}
        self.left_out = 0

    def find(self) -> list[WatchedRun]:
        """Look for runs; the new ones."""
        found = [(root, folder) for root in self._folders for folder in _runs_in(root) if folder not in self._runs]
        room = MOST_RUNS - len(self._runs)
        self.left_out = max(0, len(found) - room)
        new = []
        for root, folder in found[:room]:
            if folder not in self._runs:  # two roots may have it
                run = WatchedRun(self._name(root, folder), folder, self._plan_of)
                self._runs[folder] = run
                self._by_name = {**self._by_name, run.name: run}  # another one: pages look while this goes on
                new.append(run)
        return new

    def _name(self, root: Path, folder: Path) -> str:
        short = root.absolute().name if folder == root else str(folder.relative_to(root))
        names = [short, str(folder), *(f"{short} ({number})" for number in range(2, MOST_RUNS + 2))]
        return next(name for name in names if name not in self._by_name)

    def __iter__(self) -> Iterator[WatchedRun]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> WatchedRun | None:
        """The run that pages call so."""
        return self._by_name.get(name)
