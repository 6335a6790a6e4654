"""Planned runs, made: each a process of its own, resumed where it was interrupted, and a result row when it has ended.

The folder is the database. A run counts as finished once its row is in ``results.jsonl``; before that, the same command
is started again, and a run that has a checkpoint goes on from it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.sweeps.plan import PlannedRun
from automodel_cli.config.schema.sweep import Processes
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.json_files import parse_json
from automodel_cli.launch.jobs import Job, JobEnd, Jobs, own_command
from automodel_cli.metrics.log_file import METRICS_NAME
from automodel_cli.processes import cores
from automodel_cli.scaling.outcome import last_update, outcome
from automodel_cli.scaling.results import FORMAT, RESULTS_NAME, ResultRow, append_row, read_rows
from automodel_cli.text import decimal

LOG_NAME = "output.log"
ATTEMPTS_NAME = "attempts.jsonl"
_GPUS = Path("/proc/driver/nvidia/gpus")
_LOOK_S = 2.0  # between two looks at the logs of runs under way


def rows_so_far(folder: Path) -> dict[str, ResultRow]:
    """The newest row of each run that has ended, by id."""
    path = folder / RESULTS_NAME
    return {row.id: row for row in read_rows(path).values()} if path.is_file() else {}


def state_of(run: PlannedRun, rows: Mapping[str, ResultRow]) -> str:
    """``finished``, ``failed`` (it is tried again), ``interrupted`` (it goes on), or ``new``."""
    if run.id in rows:
        return rows[run.id].status
    return "interrupted" if (run.folder / ATTEMPTS_NAME).exists() else "new"


@dataclass
class Runner:
    """Makes runs in ``folder``; ``interrupted`` once a signal has stopped it, ``rows`` of all that have ended.

    Args:
        launch: launch flags of each run, by name.
        results: the folder whose ``results.jsonl`` gets the rows.
    """

    results: Path
    processes: Processes
    launch: Mapping[str, str]
    reporter: Reporter
    interrupted: bool = False
    stopped_by: int | None = None

    def make(self, runs: Sequence[PlannedRun]) -> Iterator[ResultRow]:
        """Yield the row of each run that has ended: of finished ones at once, of others as they end."""
        rows = rows_so_far(self.results)
        for run in runs:
            if (row := rows.get(run.id)) and row.status == "finished":
                yield row
        todo = [run for run in runs if not ((row := rows.get(run.id)) and row.status == "finished")]
        by_name = {run.id: run for run in todo}
        jobs = Jobs(at_once=self.processes.jobs, stop_timeout_s=self.processes.stop_timeout)
        watch = _Watch(by_name, len(runs) - len(todo), len(runs), self.reporter)
        slots = _Slots(self.processes.jobs, self.launch)
        starts = (partial(self._job, run, slots) for run in todo)
        for end in jobs.run(starts, meanwhile=watch):
            run = by_name[end.job.name]
            _note(run.folder, end=time.time())
            if end.was_stopped:
                self.interrupted = True
                self.reporter.say(f"{run.id}: interrupted; the same command goes on with it")
                continue
            watch.done += 1
            row = _row(run, end)
            append_row(self.results, row)
            self.reporter.say(_line(row, watch.done, len(runs)))
            yield row
        self.stopped_by = jobs.stopped
        self.interrupted = self.interrupted or jobs.stopped is not None

    def _job(self, run: PlannedRun, slots: _Slots, slot: int) -> Job:
        run.folder.mkdir(parents=True, exist_ok=True)
        going_on = " (goes on)" if (run.folder / ATTEMPTS_NAME).exists() else ""
        _note(run.folder, start=time.time())
        self.reporter.say(f"{run.id}: started{going_on}, log in {run.folder / LOG_NAME}")
        flags = [word for name, value in self.launch.items() for word in (f"--{name}", str(value))]
        trust = [word for name in self.processes.trust for word in ("--trust", name)]
        command = own_command([*run.arguments, *trust, *flags])
        return Job(run.id, command, run.folder / LOG_NAME, slots.environment(slot))


class _Slots:
    """What runs beside one another have to share: GPUs and cores."""

    def __init__(self, jobs: int, launch: Mapping[str, str]) -> None:
        width = str(launch.get("nproc-per-node", "1"))
        self._width = int(width) if width.isdigit() else None
        self._jobs, self._gpus = jobs, _gpus()
        if jobs > 1 and self._gpus and (self._width is None or jobs * self._width > len(self._gpus)):
            raise ConfigError(
                f"{jobs} jobs of {width} processes do not fit {len(self._gpus)} GPUs",
                "lower --jobs or --nproc-per-node, or hide the GPUs (CUDA_VISIBLE_DEVICES=)",
            )

    def environment(self, slot: int) -> dict[str, str]:
        """Of the job in ``slot``."""
        width = self._width or 1
        if self._jobs == 1:
            return {}
        shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // (self._jobs * width))))}
        if self._gpus:
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus[slot * width : (slot + 1) * width])
        return shared


def _gpus() -> list[str]:
    """NVIDIA's GPUs as CUDA_VISIBLE_DEVICES calls them; without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number in range(len(list(_GPUS.iterdir())))] if _GPUS.is_dir() else []


class _Watch:
    """The progress line: how many runs have ended, and how far one under way is."""

    def __init__(self, runs: Mapping[str, PlannedRun], done: int, total: int, reporter: Reporter) -> None:
        self.runs, self.done, self.total, self.reporter = runs, done, total, reporter
        self._looked = 0.0

    def __call__(self, running: list[Job]) -> None:
        if time.monotonic() - self._looked < _LOOK_S or not running:
            return
        self._looked = time.monotonic()
        self.reporter.progress(self.done, self.total, "; ".join(self._words(self.runs[job.name]) for job in running))

    def _words(self, run: PlannedRun) -> str:
        step, loss = last_update(run.folder)
        return f"{run.id} step {step}/{run.steps or '?'}" + (f" loss {loss:.3f}" if loss is not None else "")


def _row(run: PlannedRun, end: JobEnd) -> ResultRow:
    error = end.message if end.failed else None
    numbers: dict[str, Any] = {}
    if error is None:
        try:
            numbers = outcome(run.folder)
        except DataError as missing:
            error = missing.message
    row = {
        "format": FORMAT,
        "id": run.id,
        "status": "finished" if error is None else "failed",
        "error": error,
        "settings": dict(run.settings),
        "recipe": run.recipe,
        "seed": run.seed,
        "budget": run.budget,
        "depth": run.depth,
        "flops_per_token": run.flops_per_token,
        "wall_s": _wall_s(run.folder),
        **{f"params_{name}": number for name, number in run.params.items()},
        **numbers,
    }
    return ResultRow.model_validate_json(json.dumps(row))


def _line(row: ResultRow, done: int, total: int) -> str:
    where = f"[{done}/{total}] {row.id}: "
    if row.status == "failed":
        return f"{where}FAILED: {row.error}"
    bits = f", {decimal(row.val_bpb)} bits per byte" if row.val_bpb is not None else ""
    return f"{where}loss {decimal(row.val_loss)}{bits} after {row.tokens:,} tokens, {row.wall_s or 0:.0f} s"


# --------------------------------------------------------------------------------------------- attempts


def _note(folder: Path, **what: float) -> None:
    """One line for each start and each end of a run's process."""
    with (folder / ATTEMPTS_NAME).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(what) + "\n")


def _attempts(folder: Path) -> list[dict[str, float]]:
    path = folder / ATTEMPTS_NAME
    if not path.is_file():
        return []
    attempts: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            said = parse_json(line.encode(), str(path))
        except DataError:  # a kill cut it off
            continue
        if "start" in said:
            attempts.append({"start": float(said["start"])})
        elif attempts and "end" in said:
            attempts[-1]["end"] = float(said["end"])
    return attempts


def _wall_s(folder: Path) -> float | None:
    """Seconds of all attempts; one that was killed with its sweep ended at its last line of metrics, at the latest."""
    metrics = folder / METRICS_NAME
    last = metrics.stat().st_mtime if metrics.is_file() else 0.0
    seconds = sum(max(0.0, one.get("end", last) - one["start"]) for one in _attempts(folder))
    return seconds or None
