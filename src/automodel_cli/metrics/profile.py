"""Where the time of an update goes: phases on a stopwatch, operators and kernels in torch's profiler.

Order of events: four updates to warm up (compilation, caches, the profiler itself) -> N updates with phases timed and
operators recorded -> the trace is written, a summary is said, all is let go, training goes on.

Two clocks, kept apart. *Host time* is what the training thread spends in a phase. On CUDA it ends when the work is
enqueued, so the wait for the GPU turns up wherever the host first asks for a number (logging, mostly). *GPU time* is
how long kernels and copies ran, booked to the phase whose host interval they were launched in, on whatever thread:
autograd launches the backward pass from another one.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch

from automodel_cli.errors import AutomodelError
from automodel_cli.files import atomic_file
from automodel_cli.json_files import FileModel, parse_json, validated
from automodel_cli.metrics.trace import PHASES, PREFIX, Cells, Event, gpu_times, operator_rows, phase_rows, self_times
from automodel_cli.text import plural

Item = TypeVar("Item")
UNTOUCHED_UPDATES = 3  # compilation and first-time allocations; then one more in which the profiler warms up
_END = object()
_NOTHING = contextlib.nullcontext()


class _Trace(FileModel):
    """The frame of a trace."""

    traceEvents: list[dict[str, Any]]


class NoProfile:
    """What the loop holds when nothing is profiled: three calls that do nothing."""

    def __enter__(self) -> NoProfile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pass

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around a part of an update."""
        return _NOTHING

    def each(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        """The items; waiting for each one is a phase."""
        return items

    def step(self, step: int) -> None:
        """Update ``step`` is over."""


class StepProfiler(NoProfile):
    """Profiles ``updates`` updates of this process, once it is warm. Used as a context manager around the loop.

    Args:
        folder: where ``step_XXXXXXXX_rankR.json.gz`` is written, named after the last update in it.
        summarise: whether this process says the summary; every one writes its trace.
        say, columns: a line; a title, headings and rows.
        aside: entered around the profiler's own work, which is not training.
    """

    def __init__(
        self,
        updates: int,
        *,
        folder: Path,
        rank: int = 0,
        device: torch.device | str = "cpu",
        summarise: bool = True,
        say: Callable[[str], None],
        columns: Callable[[str, Sequence[str], Cells], None],
        aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.updates = updates
        self.folder, self.rank, self.device = folder, rank, torch.device(device)
        self._summarise, self._say, self._columns, self._aside = summarise, say, columns, aside
        self._profiler: torch.profiler.profile | None = None
        self._done = False
        self._timing = False
        self._untouched_s: list[float] = []
        self._now: defaultdict[str, float] = defaultdict(float)  # seconds of the update under way, by phase
        self._timed: list[dict[str, float]] = []  # of those that are over, with "wall"
        self._last_step = 0

    def __enter__(self) -> StepProfiler:
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._done:
            return
        if kind is not None:
            self._stop()
            return
        if self._now:  # the loop ended in the middle of this one, after its work was done
            self._close_update(self._last_step + 1)
        with self._aside():
            self._finish()

    def phase(self, name: str) -> AbstractContextManager[None]:
        assert name in PHASES, name
        return self._measured(name) if self._timing else _NOTHING

    @contextlib.contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with torch.profiler.record_function(PREFIX + name):
                yield
        finally:
            self._now[name] += time.perf_counter() - started

    def each(self, name: str, items: Iterable[Item]) -> Iterable[Item]:
        iterator = iter(items)
        while True:
            with self.phase(name):
                item = next(iterator, _END)
            if item is _END:
                self._now.pop(name, None)  # no update begins
                return
            yield item  # type: ignore[misc]

    def step(self, step: int) -> None:
        """Update ``step`` is over: warm up, record, or finish, whichever is due."""
        if self._done:
            return
        if self._timing:
            if len(self._timed) + 1 >= self.updates:
                self._wait_for_device()
            self._close_update(step)
            if len(self._timed) >= self.updates:
                with self._aside():
                    self._finish()
            return
        self._last_step = step
        self._wait_for_device()
        if self._profiler is not None:
            with self._aside():
                self._profiler.step()
            self._timing = True
        else:
            self._untouched_s.append(time.perf_counter() - self._started)
            if len(self._untouched_s) == UNTOUCHED_UPDATES:
                with self._aside():
                    self._profiler = _new_profiler(self.device)
                    self._profiler.start()
        self._started = time.perf_counter()

    def _close_update(self, step: int) -> None:
        now = time.perf_counter()
        self._timed.append({**self._now, "wall": now - self._started})
        self._now.clear()
        self._started, self._last_step = now, step
        if self._profiler is not None and len(self._timed) < self.updates:
            self._profiler.step()

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _stop(self) -> torch.profiler.profile | None:
        """End the recording; the profiler is returned to be read, and not kept."""
        profiler, self._profiler = self._profiler, None
        self._done, self._timing = True, False
        if profiler is not None:
            profiler.stop()
        return profiler

    def _finish(self) -> None:
        self._wait_for_device()
        profiler = self._stop()
        if not self._timed or profiler is None:
            self._say(f"profile: nothing to show, the run ended within the {UNTOUCHED_UPDATES + 1} updates of warm-up")
            return
        try:
            path, events = self._write_trace(profiler)
        except (OSError, AutomodelError) as error:  # no reason to end a training
            self._say(f"profile: no trace was written: {error}")
            return
        if self._summarise:
            self._show(events, path)

    def _write_trace(self, profiler: torch.profiler.profile) -> tuple[Path, list[Event]]:
        """The trace's path, and its events where a summary is wanted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{self._last_step:08d}_rank{self.rank}.json.gz"
        raw = path.with_name(f"{path.name}.raw.tmp")
        try:
            profiler.export_chrome_trace(str(raw))
            with (
                atomic_file(path) as target,
                raw.open("rb") as source,
                # A large trace is quick to pack: other ranks wait.
                gzip.GzipFile(fileobj=target, mode="wb", compresslevel=3) as packed,
            ):
                shutil.copyfileobj(source, packed)
            events: list[Event] = []
            if self._summarise:
                text = raw.read_text(encoding="utf-8", errors="replace")  # operators may have any names
                events = [*validated(parse_json(text, raw, allow_nan=True), _Trace, raw).traceEvents]
        finally:
            raw.unlink(missing_ok=True)
        return path, events

    def _show(self, events: list[Event], path: Path) -> None:
        done = len(self._timed)
        wall_ms = statistics.fmean(update["wall"] for update in self._timed) * 1e3
        first = self._last_step - done + 1
        on_gpu = gpu_times(events) if self.device.type == "cuda" else None
        self._columns(
            f"profile of {plural(done, 'update')}, {first} to {self._last_step}"
            + "; time of the host" * (on_gpu is not None),
            ("phase", "median ms", "mean ms", "share", *(("GPU ms",) if on_gpu else ())),
            phase_rows(self._timed, on_gpu),
        )
        if on_gpu:
            busy_ms = on_gpu.busy_ms / done
            self._say(f"GPU busy {busy_ms:.1f} of {wall_ms:.1f} ms per update, idle {1 - busy_ms / wall_ms:.1%}")
            self._say("GPU ms: work that a phase launched, even if it ran after the phase was over")
        if on_gpu and not on_gpu.kernels:
            self._say("no GPU work was recorded: the driver may let only administrators profile")
        self._columns(
            f"most expensive {'kernels' if on_gpu else 'operators, time of their own'}",
            ("name", "ms per update", "share", "calls per update"),
            operator_rows(on_gpu.kernels if on_gpu else self_times(events), updates=done, wall_ms=wall_ms),
        )
        untouched_ms = min(self._untouched_s[1:]) * 1e3
        self._say(f"an update without the profiler: {untouched_ms:.1f} ms (the faster of two before it)")
        if done < self.updates:
            self._say(f"the run ended after {done} of the {self.updates} updates to profile")
        self._say(f"trace: {path} (for https://ui.perfetto.dev or chrome://tracing)")


def _new_profiler(device: torch.device) -> torch.profiler.profile:
    from torch.profiler import ProfilerAction, ProfilerActivity

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes to stderr whenever it starts and stops
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return torch.profiler.profile(
        activities=activities,
        schedule=lambda step: ProfilerAction.RECORD if step else ProfilerAction.WARMUP,
        acc_events=True,  # there is one cycle; without it torch 2.11 warns that others would be forgotten
    )
