"""Choices for this machine, with the machine's answers put in."""

import os
import subprocess
import sys

import pytest
import torch

from automodel_cli import device
from automodel_cli.device import machine_memory
from automodel_cli.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla T4", None),
        ("NVIDIA Imaginary 9000", None),
    ],
)
def test_peaks_by_name(name, bf16):
    assert device.peak_flops_by_name(name, "bf16") == bf16


def test_other_precisions_have_other_peaks():
    assert device.peak_flops_by_name("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert device.peak_flops_by_name("NVIDIA H200", "fp32") == 494e12
    assert device.peak_flops(CPU, "bf16") is None


def test_cpu_features_are_read_from_the_first_flags_line(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor : 1\nflags : fpu\n")
    assert device.cpu_features(path) == {"fpu", "avx512_bf16", "amx_bf16"}
    assert device.cpu_features(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"amx_bf16", "avx512_bf16"}, "bf16"), ({"avx512_bf16"}, "bf16"), ({"avx2", "avx512f"}, "fp32")],
)
def test_precision_of_a_cpu_follows_its_instructions(monkeypatch, features, expected):
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset(features))
    chosen, reason = device.choose_precision("auto", CPU)
    assert chosen == expected
    assert reason


@pytest.mark.parametrize(
    ("capability", "lack"),
    [((9, 0), None), ((8, 9), None), ((8, 6), "compute capability 8.6 has no fp8 matrix units")],
)
def test_fp8_of_a_gpu_follows_its_capability(monkeypatch, capability, lack):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = device.lacks_fp8(torch.device("cuda", 0))
    assert found == lack or found.startswith(lack)


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_precision_of_a_gpu_follows_its_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.choose_precision("auto", torch.device("cuda"))[0] == expected
    assert device.decoding_dtype(torch.device("cuda")) == (torch.bfloat16 if expected == "bf16" else None)
    assert device.decoding_dtype(CPU) is None


def test_a_precision_asked_for_is_taken_or_refused():
    assert device.choose_precision("fp32", CPU) == ("fp32", "as configured")
    with pytest.raises(ConfigError, match="fp8"):
        device.choose_precision("fp8", CPU)


LONG = {"total_tokens": 10**11, "total_steps": 200_000, "parameters": 124_000_000}
SHORT = {"total_tokens": 2_000_000, "total_steps": 500, "parameters": 3_000_000}


def test_compile_auto_follows_the_length_of_the_run(monkeypatch):
    monkeypatch.setattr(device, "_compile_problem", lambda *_: None)
    for where in (CPU, torch.device("cuda")):
        assert device.choose_compile("auto", device=where, **LONG)[0]
        chosen, reason = device.choose_compile("auto", device=where, **SHORT)
        assert not chosen
        assert "too short to pay off" in reason
    assert not device.choose_compile("auto", device=torch.device("mps"), **LONG)[0]


def test_compile_as_configured_unless_it_cannot_work(monkeypatch):
    monkeypatch.setattr(device, "_compile_problem", lambda *_: None)
    assert device.choose_compile(True, device=CPU, **SHORT) == (True, "as configured")
    assert device.choose_compile(False, device=CPU, **LONG) == (False, "as configured")
    monkeypatch.setattr(device, "_compile_problem", lambda *_: "no compiler")
    for setting in (True, "auto"):
        chosen, reason = device.choose_compile(setting, device=CPU, **LONG)
        assert not chosen
        assert "no compiler" in reason


def test_a_missing_compiler_is_found_before_training(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert device._compile_problem.__wrapped__(CPU, "inductor") == "there is no C++ compiler"
    assert device._compile_problem.__wrapped__(CPU, "eager") is None, "it needs none"


def test_a_device_that_is_not_here_is_refused():
    assert device.pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert device.pick_device() == CPU
        with pytest.raises(ConfigError, match="cuda"):
            device.pick_device("cuda")


SETTLE = """
import platform
import torch
from automodel_cli.device import bound_the_heap, configure_process, resident_bytes
configure_process(torch.device("cpu"), threads=1)
assert torch.get_num_threads() == 1
assert torch.are_deterministic_algorithms_enabled()
if platform.libc_ver()[0] == "glibc":
    assert bound_the_heap()
    before, small = resident_bytes(), []
    for _ in range(15):
        logits = torch.zeros(6 << 20)  # 24 MiB, and something small that stays beside it
        small += [torch.zeros(9) for _ in range(3)]
        scores = torch.zeros_like(logits)
        small += [torch.zeros(9) for _ in range(3)]
        del logits, scores
    grown = (resident_bytes() - before) >> 20
    assert grown < 24, grown
"""


def test_a_settled_process_gives_large_blocks_back():
    """In a process of its own: the settings are for good, and its heap has no past."""
    subprocess.run([sys.executable, "-c", SETTLE], check=True)


def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv(device.HUGE_PAGES_VARIABLE, raising=False)
    device.prefer_huge_pages()
    assert os.environ[device.HUGE_PAGES_VARIABLE] == "1"
    monkeypatch.setenv(device.HUGE_PAGES_VARIABLE, "0")
    device.prefer_huge_pages()
    assert os.environ[device.HUGE_PAGES_VARIABLE] == "0"


def test_the_residual_stream_follows_the_products():
    cuda = torch.device("cuda")
    assert device.choose_residual("fp32", precision="bf16", device=cuda)[0] == "fp32"
    assert device.choose_residual("auto", precision="bf16", device=CPU)[0] == "fp32"
    assert device.choose_residual("auto", precision="bf16", device=cuda)[0] == "bf16"
    assert device.choose_residual("auto", precision="fp16", device=cuda)[0] == "fp32"
    with pytest.raises(ConfigError, match="computed in fp16"):
        device.choose_residual("bf16", precision="fp16", device=cuda)


@pytest.mark.parametrize(
    ("setting", "blocks", "processes", "expected"),
    [
        ("auto", 12, 1, "model"),
        ("auto", 48, 1, "blocks"),
        ("model", 48, 1, "model"),
        ("blocks", 12, 1, "blocks"),
        ("model", 12, 8, "blocks"),
    ],
)
def test_what_is_compiled_at_once(setting, blocks, processes, expected):
    assert device.choose_compile_scope(setting, blocks=blocks, processes=processes)[0] == expected


def test_free_memory_is_the_smaller_of_machine_and_control_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 900 kB\n")
    assert machine_memory(proc, groups) == (1000 << 10, 900 << 10)
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    (groups / "job" / "step").mkdir(parents=True)
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    assert machine_memory(proc, groups) == (1000 << 10, 900 << 10)
    (groups / "job" / "memory.max").write_text(f"{500 << 10}\n")
    (groups / "job" / "memory.current").write_text(f"{300 << 10}\n")
    (groups / "job" / "memory.stat").write_text(f"anon {200 << 10}\ninactive_file {100 << 10}\n")
    assert machine_memory(proc, groups) == (500 << 10, 300 << 10)
    assert machine_memory(tmp_path / "nowhere", groups) is None


def test_free_memory_in_a_control_group_of_version_1(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 900 kB\n")
    (proc / "self" / "cgroup").write_text("3:cpu:/other\n2:memory:/slurm/job_1\n")
    folder = groups / "memory" / "slurm" / "job_1"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{400 << 10}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{150 << 10}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {50 << 10}\n")
    assert machine_memory(proc, groups) == (400 << 10, 300 << 10)
