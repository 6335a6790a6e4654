"""The profiler around a loop of our own, and the trace's arithmetic on events written by hand."""

from __future__ import annotations

import gc
import gzip
import json
import time
import weakref
from pathlib import Path

import pytest
import torch

from automodel_cli.metrics import profile
from automodel_cli.metrics.profile import NoProfile, StepProfiler
from automodel_cli.metrics.trace import PHASES, covered, gpu_times, phase_rows, self_times


class Said:
    """What a profiler says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tables: list[tuple] = []

    def columns(self, title, headings, rows) -> None:
        self.tables.append((title, headings, rows))


def profiler(folder: Path, updates: int, **arguments) -> tuple[StepProfiler, Said]:
    said = Said()
    return StepProfiler(updates, folder=folder, say=said.lines.append, columns=said.columns, **arguments), said


def loop(profiler: NoProfile, steps: int, *, first: int = 1) -> None:
    """A loop with every phase in it; a phase that lasts is one that sleeps."""
    with profiler:
        for step, _ in enumerate(profiler.each("data wait", range(steps)), start=first):
            with profiler.phase("forward"):
                torch.ones(50, 50) @ torch.ones(50, 50)
                time.sleep(0.01)
            for name in set(PHASES) - {"data wait", "forward"}:
                with profiler.phase(name):
                    torch.ones(3) + 1
            time.sleep(0.002)
            profiler.step(step)


def events_of(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_summary_and_trace(tmp_path):
    watched, said = profiler(tmp_path / "profile", 3, rank=2)
    loop(watched, 12)
    path = tmp_path / "profile/step_00000007_rank2.json.gz"
    assert list(path.parent.iterdir()) == [path]
    title, headings, rows = said.tables[0]
    assert title == "profile of 3 updates, 5 to 7"
    assert headings == ("phase", "median ms", "mean ms", "share")
    assert [row[0] for row in rows] == [*PHASES, "the rest", "an update"]
    means = {row[0]: float(row[2]) for row in rows}
    assert sum(means.values()) == pytest.approx(2 * means["an update"], abs=1)
    assert means["forward"] >= 10 and means["the rest"] >= 2
    assert sum(float(row[3][:-1]) for row in rows) == pytest.approx(200, abs=1)
    assert said.lines[-1] == f"trace: {path} (for https://ui.perfetto.dev or chrome://tracing)"
    ranges = [event["name"] for event in events_of(path) if event.get("cat") == "user_annotation"]
    assert {f"automodel: {name}" for name in PHASES} <= set(ranges)
    assert ranges.count("automodel: forward") == 3
    products = next(row for row in said.tables[1][2] if row[0] == "aten::mm")
    assert products[3] == "1"


def test_after_the_profile_nothing_is_left(tmp_path):
    watched, _ = profiler(tmp_path, 2)
    with watched:
        for step in range(1, 6):
            watched.step(step)
        assert watched._profiler is not None
        held = weakref.ref(watched._profiler)
        assert watched.phase("forward") is not profile._NOTHING
        watched.step(6)
        gc.collect()
        assert held() is None
        assert watched.phase("forward") is profile._NOTHING


def test_a_run_that_ends_early_shows_what_there_is(tmp_path):
    watched, said = profiler(tmp_path, 50)
    loop(watched, 7, first=101)
    assert (tmp_path / "step_00000107_rank0.json.gz").is_file()
    assert "the run ended after 3 of the 50 updates to profile" in said.lines


def test_an_update_in_which_the_loop_ended_counts(tmp_path):
    watched, said = profiler(tmp_path, 50)
    with watched:
        for step in range(1, 6):
            watched.step(step)
        with watched.phase("saving"):
            pass
    assert (tmp_path / "step_00000006_rank0.json.gz").is_file()
    assert "the run ended after 2 of the 50 updates to profile" in said.lines


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_a_run_within_the_warm_up_says_so(steps, tmp_path):
    watched, said = profiler(tmp_path, 5)
    loop(watched, steps)
    assert said.lines == ["profile: nothing to show, the run ended within the 4 updates of warm-up"]
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_loop_is_the_one_told(tmp_path):
    watched, said = profiler(tmp_path, 5)
    with pytest.raises(ZeroDivisionError), watched:
        for step in range(1, 7):
            watched.step(step)
        with watched.phase("forward"):
            raise ZeroDivisionError
    assert (watched._profiler, said.lines, list(tmp_path.iterdir())) == (None, [], [])


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    watched, said = profiler(tmp_path / "file", 2)
    loop(watched, 8)
    assert len(said.lines) == 1 and said.lines[0].startswith("profile: no trace was written: ")


def test_another_rank_writes_and_is_silent(tmp_path):
    watched, said = profiler(tmp_path, 2, rank=1, summarise=False)
    loop(watched, 6)
    assert (tmp_path / "step_00000006_rank1.json.gz").is_file()
    assert (said.lines, said.tables) == ([], [])


def test_no_profile_does_nothing(tmp_path):
    nothing, items = NoProfile(), [1, 2]
    assert nothing.each("data wait", items) is items
    assert nothing.phase("forward") is nothing.phase("backward")
    loop(nothing, 3)


def test_means_add_up_where_a_phase_is_rare():
    updates = [{"wall": 0.1, "forward": 0.06}, {"wall": 0.3, "forward": 0.08, "logging": 0.2}, {"wall": 0.1}]
    rows = {row[0]: row[1:] for row in phase_rows(updates)}
    assert rows["forward"] == ("60.0", "46.7", "28.0%")
    assert rows["logging"] == ("0.0", "66.7", "40.0%")
    assert rows["an update"] == ("100.0", "166.7", "100.0%")
    assert rows["the rest"] == ("40.0", "53.3", "32.0%")


# ------------------------------------------------------------------------------------ reading the trace


def test_self_times_are_those_of_torch(tmp_path):
    """Against torch's own sums, of a function with nested operators and a backward pass."""
    weights = torch.randn(64, 64, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as watched:
        for _ in range(3):
            torch.nn.functional.layer_norm(torch.randn(64, 64) @ weights, (64,)).sum().backward()
    watched.export_chrome_trace(str(tmp_path / "trace.json"))
    ours = {one.name: one for one in self_times(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])}
    theirs = {one.key: one for one in watched.key_averages()}
    assert len(theirs) > 10 and set(ours) == set(theirs)
    for name, one in theirs.items():
        assert ours[name].calls == one.count, name
        assert ours[name].ms == pytest.approx(one.self_cpu_time_total / 1e3, abs=0.01), name


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None, tid: int = 1) -> dict:
    more = {} if correlation is None else {"args": {"correlation": correlation}}
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, **more}


GPU_TRACE = [
    event("user_annotation", "automodel: forward", 0, 100),
    event("user_annotation", "automodel: backward", 100, 100),
    event("user_annotation", "forward", 120, 50),  # a user's own range of that name
    event("cuda_runtime", "cudaLaunchKernel", 10, 5, 1),
    event("cuda_driver", "cuLaunchKernelEx", 20, 5, 2),
    event("cuda_runtime", "cudaLaunchKernel", 130, 5, 3, tid=2),  # autograd's thread
    event("cuda_runtime", "cudaGraphLaunch", 150, 5, 4, tid=2),
    event("cuda_runtime", "cudaMemcpyAsync", 250, 5, 5),
    event("kernel", "gemm", 30, 100, 1, tid=7),
    event("kernel", "triton_poi", 130, 40, 2, tid=7),
    event("kernel", "gemm", 170, 100, 3, tid=7),  # runs on after the phase has ended
    event("kernel", "reduce", 270, 10, 4, tid=7),
    event("kernel", "reduce", 280, 10, 4, tid=7),
    event("gpu_memcpy", "Memcpy DtoH", 285, 15, 5, tid=8),  # overlaps with a kernel
    event("kernel", "lost", 310, 1, 99, tid=7),  # its launch was before the recording
    event("gpu_user_annotation", "automodel: forward", 30, 140, tid=7),
    {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
]


def test_gpu_time_is_booked_to_the_phase_that_launched_it():
    times = gpu_times(GPU_TRACE)
    assert times.by_phase_ms == {"forward": 0.14, "backward": 0.12, "the rest": 0.016}
    assert times.busy_ms == pytest.approx((270 + 1) / 1e3)
    assert [(one.name, one.ms, one.calls) for one in times.kernels[:2]] == [
        ("gemm", 0.2, 2),
        ("triton_poi", 0.04, 1),
    ]


def test_rows_with_a_gpu():
    rows = {row[0]: row[1:] for row in phase_rows([{"wall": 0.001, "forward": 0.0005}] * 2, gpu_times(GPU_TRACE))}
    assert rows["forward"] == ("0.5", "0.5", "50.0%", "0.1")
    assert rows["an update"][-1] == "0.1"


def test_covered_counts_overlaps_once():
    assert covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert covered([]) == 0
