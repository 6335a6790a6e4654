"""Reads a trace of torch's profiler: where the time of the host and of the GPU went.

The trace is Chrome's trace format as torch writes it: complete events (``ph`` X) with ``ts`` and ``dur`` in us; their
``cat`` is cpu_op, user_annotation (phases), cuda_runtime or cuda_driver (launches), kernel, gpu_memcpy, gpu_memset; a
launch and what it started share ``args.correlation``.
"""

from __future__ import annotations

import bisect
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
Cells = Sequence[Sequence[str]]

PHASES = (
    "data wait", "copy to device", "forward", "backward", "gradient norm, clip", "optimizer",
    "logging", "validation", "saving",
)  # fmt: skip
REST = "the rest"
# Of the phases' names in the trace, so that no range of a user's model is taken for one.
PREFIX = "automodel: "
SHOWN_OPERATORS = 10
_GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Spent:
    """Milliseconds and calls of one operator or kernel, all updates together."""

    name: str
    ms: float
    calls: int


@dataclass(frozen=True)
class GpuTimes:
    """What the GPU did, all updates together.

    Attributes:
        busy_ms: time in which at least one kernel or copy ran.
        by_phase_ms: run time of what each phase launched; REST: launched outside of any.
        kernels: by name.
    """

    busy_ms: float
    by_phase_ms: dict[str, float]
    kernels: list[Spent]


def phase_rows(updates: Sequence[Mapping[str, float]], on_gpu: GpuTimes | None = None) -> Cells:
    """Rows of name, median, mean, share of the whole, GPU time; seconds of each phase and "wall" go in.

    The means add up to the last row's. Medians do not: what happens in every tenth update has a median of zero.
    """
    spent = {name: [update.get(name, 0.0) for update in updates] for name in PHASES}
    spent[REST] = [update["wall"] - sum(update.get(name, 0.0) for name in PHASES) for update in updates]
    spent["an update"] = [update["wall"] for update in updates]
    whole = sum(spent["an update"])
    gpu: dict[str, float] = {}
    if on_gpu:
        gpu = {**on_gpu.by_phase_ms, "an update": sum(on_gpu.by_phase_ms.values())}
    return [
        (
            name,
            f"{statistics.median(seconds) * 1e3:.1f}",
            f"{statistics.fmean(seconds) * 1e3:.1f}",
            f"{sum(seconds) / whole:.1%}",
            *((f"{gpu.get(name, 0.0) / len(updates):.1f}",) if on_gpu else ()),
        )
        for name, seconds in spent.items()
    ]


def operator_rows(spent: Sequence[Spent], *, updates: int, wall_ms: float) -> Cells:
    """The most expensive ones: name, milliseconds per update, share of an update, calls per update."""
    return [
        (
            one.name if len(one.name) <= 60 else f"{one.name[:57]}...",
            f"{one.ms / updates:.2f}",
            f"{one.ms / updates / wall_ms:.1%}",
            f"{one.calls / updates:.3g}",
        )
        for one in spent[:SHOWN_OPERATORS]
    ]


def self_times(events: Iterable[Event]) -> list[Spent]:
    """Time of each operator on its thread less that of what it called, longest first; phases left out."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation"):
            threads[event["pid"], event["tid"]].append(event)
    spent_us: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for thread in threads.values():
        around: list[tuple[float, str]] = []  # end and name of what is open
        for event in sorted(thread, key=lambda event: (event["ts"], -event["dur"])):
            while around and around[-1][0] <= event["ts"]:
                around.pop()
            caller = around[-1][1] if around else ""
            spent_us[caller] -= event["dur"]
            spent_us[event["name"]] += event["dur"]
            calls[event["name"]] += event["name"] != caller  # one that passes the call on to its like
            around.append((event["ts"] + event["dur"], event["name"]))
    del spent_us[""]
    return [
        Spent(name, us / 1e3, calls[name])
        for name, us in spent_us.most_common()
        if not name.startswith((PREFIX, "ProfilerStep#"))
    ]


def gpu_times(events: Sequence[Event]) -> GpuTimes:
    """What the GPU did and which phase had asked for it."""
    phases = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(PREFIX))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)
    )
    starts = [start for start, _, _ in phases]
    launched_at = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }

    def phase_of(event: Event) -> str:
        at = launched_at.get(event.get("args", {}).get("correlation"))
        index = bisect.bisect_right(starts, at) - 1 if at is not None else -1
        return phases[index][2] if index >= 0 and at is not None and at < phases[index][1] else REST

    work = [event for event in events if event.get("ph") == "X" and event.get("cat") in _GPU_WORK]
    by_phase: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in work:
        by_phase[phase_of(event)] += event["dur"]
        kernels[event["name"]] += event["dur"]
    calls = Counter(event["name"] for event in work)
    return GpuTimes(
        busy_ms=covered((event["ts"], event["ts"] + event["dur"]) for event in work) / 1e3,
        by_phase_ms={name: us / 1e3 for name, us in by_phase.items()},
        kernels=[Spent(name, us / 1e3, calls[name]) for name, us in kernels.most_common()],
    )


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
