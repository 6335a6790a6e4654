"""What this machine can do, and which precision, compilation and threads follow from it.

Choices return the choice and a reason in a few words, which the run prints. torch is imported inside the
functions: ``inspect-ckpt`` and the sizing of a plan work without it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("bf16", "fp16", "fp32")

# Peak dense FLOP/s of matrix units, by a part of the name that CUDA reports; the first match counts.
# (bf16, fp16, fp32): fp32 is TF32 where it exists, because that is what matrix products run in.
_PEAKS: dict[str, tuple[float | None, float, float]] = {
    "GB200": (2.5e15, 2.5e15, 1.25e15),
    "B200": (2.25e15, 2.25e15, 1.1e15),
    "H200": (989e12, 989e12, 494e12),
    "H100 PCIe": (756e12, 756e12, 378e12),
    "H100 NVL": (835e12, 835e12, 417e12),
    "H100": (989e12, 989e12, 494e12),
    "H800": (989e12, 989e12, 494e12),
    "A100": (312e12, 312e12, 156e12),
    "A800": (312e12, 312e12, 156e12),
    "A40": (149.7e12, 149.7e12, 74.8e12),
    "A30": (165e12, 165e12, 82e12),
    "A10G": (70e12, 70e12, 35e12),
    "L40S": (362e12, 362e12, 183e12),
    "L4": (121e12, 121e12, 60e12),
    "RTX 4090": (165.2e12, 165.2e12, 82.6e12),
    "RTX 3090": (71e12, 71e12, 35.6e12),
    "V100": (None, 125e12, 15.7e12),
    "T4": (None, 65e12, 8.1e12),
}


def cpu_features(cpuinfo: Path | str = "/proc/cpuinfo") -> frozenset[str]:
    """Instruction sets of the first CPU (``amx_bf16``, ``avx512_bf16``, ...), as far as can be read."""
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def pick_device(setting: str = "auto") -> torch.device:
    """``auto``: the first CUDA device of this process (``LOCAL_RANK``), else the CPU; otherwise as set.

    Raises:
        ConfigError: the device that was asked for is not here.
    """
    import torch

    if setting in ("auto", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if setting == "auto":
            return torch.device("cpu")
    device = torch.device(setting)
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(f"device {setting} is not here", "choose auto, or cpu")
    return device


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak dense FLOP/s of one device at a compute precision, or None where it is not known."""
    import torch

    if device.type != "cuda":
        return None
    return peak_flops_by_name(torch.cuda.get_device_name(device), precision)


def peak_flops_by_name(name: str, precision: str) -> float | None:
    """The peak in the table for a device name as CUDA reports it, or None."""
    for part, peaks in _PEAKS.items():
        if part.lower() in name.lower():
            return peaks[PRECISIONS.index(precision)]
    return None


def choose_precision(setting: str, device: torch.device) -> tuple[str, str]:
    """(bf16 | fp16 | fp32, why): what matrix products are computed in; weights are stored in fp32 either way.

    Raises:
        ConfigError: the setting is not known, or fp16 is asked of a CPU.
    """
    if setting != "auto":
        if setting not in PRECISIONS:
            raise ConfigError(f"precision {setting!r} is not known", f"choose auto, {', '.join(PRECISIONS)}")
        return setting, "as configured"
    if device.type == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(device)
        # is_bf16_supported() also says yes where bf16 is only emulated.
        return (
            ("bf16", "native") if major >= 8 else ("fp16", f"compute capability {major}.{minor} has no bf16")
        )
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in cpu_features():
            return "bf16", f"the CPU has {feature}"
    return "fp32", "the device has no fast bf16"


def choose_compile(
    setting: bool | str, *, device: torch.device, total_tokens: int, total_steps: int
) -> tuple[bool, str]:
    """(compile or not, why). ``auto`` compiles where the time saved is likely to exceed the compile time."""
    if setting != "auto":
        return bool(setting), "as configured"
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return False, "there is no C++ compiler"
    return False, "placeholder"


def default_threads() -> int:
    """Threads for CPU kernels: the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
