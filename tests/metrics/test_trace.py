"""The trace's arithmetic: against torch's own sums, and on events written by hand."""

from __future__ import annotations

import json

import pytest
import torch

from automodel_cli.metrics.trace import covered, gpu_times, phase_rows, self_times


def test_means_add_up_where_a_phase_is_rare():
    updates = [{"wall": 0.1, "forward": 0.06}, {"wall": 0.3, "forward": 0.08, "logging": 0.2}, {"wall": 0.1}]
    rows = {row[0]: row[1:] for row in phase_rows(updates)}
    assert rows["forward"] == ("60.0", "46.7", "28.0%")
    assert rows["logging"] == ("0.0", "66.7", "40.0%")
    assert rows["an update"] == ("100.0", "166.7", "100.0%")
    assert rows["the rest"] == ("40.0", "53.3", "32.0%")


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
