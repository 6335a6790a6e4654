"""What this machine can do, and which precision, compilation and threads follow from it.

Choices return the choice and a reason in a few words, which the run prints. torch is imported inside the
functions: ``inspect-ckpt`` and the sizing of a plan work without it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from automodel_cli.dtypes import PRECISIONS, autocast_dtype
from automodel_cli.errors import ConfigError
from automodel_cli.processes import cores, own_rank
from automodel_cli.text import first_line, rough_duration

if TYPE_CHECKING:
    import torch

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

# Compiling costs 20-70 s on a CPU and wins about 7% there (plain matrix products dominate); on CUDA it costs about
# 60 s and wins a third or more.
_COMPILE_PAYS_AFTER_S = {"cpu": 1800.0, "cuda": 120.0}
# The compile time of a whole model grows with its depth, that of one block does not.
_BLOCKS_COMPILED_WHOLE = 24
_CUDA_GRAPHS_UP_TO = 50_000_000  # parameters; larger models keep a GPU busy, and graphs cost memory


def cpu_features(cpuinfo: Path | str = "/proc/cpuinfo") -> frozenset[str]:
    """Instruction sets of the first CPU (``amx_bf16``, ``avx512_bf16``, ...), as far as can be read."""
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return frozenset(line[1].split() if line else ())


def pick_device(setting: str = "auto") -> torch.device:
    """``auto``: the first CUDA device of this process (its local rank), else the CPU; otherwise as set.

    Raises:
        ConfigError: the device that was asked for is not here.
    """
    import torch

    if setting in ("auto", "cuda"):
        if torch.cuda.is_available():
            return torch.device("cuda", own_rank().local_rank)
        if setting == "auto":
            return torch.device("cpu")
    device = torch.device(setting)
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(f"this machine has no device {setting}", "choose auto or cpu")
    return device


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak dense FLOP/s of one device at a compute precision, or None where it is not known."""
    import torch

    if device.type != "cuda":
        return None
    return peak_flops_by_name(torch.cuda.get_device_name(device), precision)


def peak_flops_by_name(name: str, precision: str) -> float | None:
    """The peak in the table for a device name as CUDA reports it, or None."""
    found = (peaks[PRECISIONS.index(precision)] for part, peaks in _PEAKS.items() if part.lower() in name.lower())
    return next(found, None)


def known_devices() -> list[str]:
    """Names in the table of peaks."""
    return list(_PEAKS)


def is_known_device(name: str) -> bool:
    """Whether the table of peaks has a device of this name."""
    return peak_flops_by_name(name, "fp16") is not None


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
        if major >= 8:  # is_bf16_supported() also says yes where bf16 is only emulated
            return "bf16", "native"
        return "fp16", f"compute capability {major}.{minor} has no bf16"
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in cpu_features():
            return "bf16", f"the CPU has {feature}"
    return "fp32", "the device has no fast bf16"


def choose_orthogonalization(setting: str, device: torch.device) -> tuple[str, str]:
    """(bfloat16 | float32, why): what Muon orthogonalizes matrices in, by ``orthogonalization_dtype``.

    A CPU without instructions for bf16 takes several times as long for such products as for those of fp32.
    """
    if setting != "auto":
        return setting, "as configured"
    precision, why = choose_precision("auto", device)
    return ("bfloat16" if precision == "bf16" else "float32"), why


def decoding_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes single tokens in: bf16 on GPUs that have it.

    None elsewhere: on a CPU they are no matrix products that are worth converting for.
    """
    return autocast_dtype("bf16") if device.type == "cuda" and choose_precision("auto", device)[0] == "bf16" else None


def choose_residual(setting: str, *, precision: str, device: torch.device) -> tuple[str, str]:
    """(bf16 | fp32, why): what the stream between blocks is kept in while its products run in ``precision``."""
    if setting == "bf16" and precision != "bf16":
        raise ConfigError(
            f"residual_precision is bf16, and products are computed in {precision}",
            "set precision: bf16 as well, or leave residual_precision out",
        )
    if setting != "auto":
        return setting, "as configured"
    if device.type == "cuda" and precision == "bf16":
        return "bf16", "less traffic and memory"
    return "fp32", "does not round the residual stream"


def choose_compile_mode(setting: str | None, *, parameters: int, device: torch.device) -> tuple[str, str]:
    """(torch.compile's mode, why). CUDA graphs (``reduce-overhead``) only where launching kernels takes the time."""
    if setting == "reduce-overhead" and device.type == "cuda" and parameters > _CUDA_GRAPHS_UP_TO:
        limit = f"{_CUDA_GRAPHS_UP_TO / 1e6:.0f}M"
        return "default", f"CUDA graphs gain nothing above {limit} parameters: reduce-overhead is not used"
    return (setting, "as configured") if setting else ("default", "")


def choose_compile_scope(setting: str, *, blocks: int, processes: int) -> tuple[str, str]:
    """(model | blocks, why). Equal blocks are compiled once, the whole model once for each of them."""
    if processes > 1:
        return "blocks", "between blocks ranks exchange weights"
    if setting != "auto":
        return setting, "as configured"
    if blocks > _BLOCKS_COMPILED_WHOLE:
        return "blocks", f"{blocks} equal blocks are compiled as one"
    return "model", f"{blocks} blocks, the steps between them fused"


def lacks_fp8(device: torch.device) -> str | None:
    """Why matrix units of this device take no fp8; None where they do (NVIDIA's since Ada and Hopper)."""
    import torch

    if device.type != "cuda":
        return f"{device.type} has no fp8 matrix units"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 9):
        return None
    return f"compute capability {major}.{minor} has no fp8 matrix units, 8.9 is the first that does"


def choose_compile(
    setting: bool | str,
    *,
    device: torch.device,
    total_tokens: int,
    total_steps: int,
    parameters: int | None = None,
    backend: str | None = None,
    seconds: float | None = None,
) -> tuple[bool, str]:
    """(compile or not, why). ``auto`` compiles where the run is long enough to win back the compile time.

    Either way torch.compile is tried on a small function first; where it does not work the answer is no.

    Args:
        total_tokens, total_steps: planned length of the run.
        parameters: of the model; None where it is not known.
        backend: torch.compile's; None: its default, which needs a compiler on this machine.
        seconds: that the run has, where the time ends it.
    """
    wanted, reason = bool(setting), "as configured"
    if setting == "auto":
        seconds = eager_seconds(device, total_tokens, total_steps, parameters) if seconds is None else seconds
        wanted, reason = _worth_compiling(device, seconds)
    if not wanted:
        return False, reason
    problem = _compile_problem(device, backend or "inductor")
    return (True, reason) if problem is None else (False, f"torch.compile does not work here: {problem}")


def _worth_compiling(device: torch.device, seconds: float) -> tuple[bool, str]:
    if device.type not in _COMPILE_PAYS_AFTER_S:
        return False, f"torch.compile is not used on {device.type}"
    length = f"about {rough_duration(seconds)} without it"
    if seconds >= _COMPILE_PAYS_AFTER_S[device.type]:
        return True, length
    return False, f"{length}: too short to pay off"


def eager_seconds(device: torch.device, total_tokens: int, total_steps: int, parameters: int | None) -> float:
    """A rough guess of how long training takes without compilation: 6 FLOPs a parameter and token."""
    rate = 2e14 if device.type == "cuda" else 1e11 * cores()
    work = 6.0 * (parameters or 0) * total_tokens
    # A small model waits for kernel launches, about 30 ms per update.
    return max(work / rate, 0.03 * total_steps if device.type == "cuda" else 0.0)


@functools.cache
def _compile_problem(device: torch.device, backend: str) -> str | None:
    """Why a function of two operations cannot be compiled, or None where it can."""
    import torch

    if backend == "inductor" and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler"
    try:
        result = torch.compile(lambda x: (x * 2).sin().sum(), backend=backend)(torch.ones(64, device=device))
        result.item()
    except Exception as error:  # any failure of a toolchain is a reason not to use it
        return first_line(error, 120)
    return None


def resident_bytes() -> int | None:
    """Memory that this process has now (VmRSS); None where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """(all, free) bytes of a CUDA device, or of what this process may use of the machine's; None: not known."""
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    return machine_memory() if device.type == "cpu" else None


def machine_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(all, free) bytes of this machine, or of the control group (container, Slurm job) where that has less."""
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        kib = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}
        total, free = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for limit, used in _group_limits(proc, cgroups):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _group_limits(proc: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes of each control group above this process that has a limit; file cache is not counted."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = PurePosixPath(name.strip("/"))
        for folder in (root / place, *(root / parent for parent in place.parents), root):
            if (one := _group_limit(folder, *names)) is not None:
                found.append(one)
    return found


def _group_limit(folder: Path, limit: str, used: str, cache: str) -> tuple[int, int] | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))  # "max" is no number: no limit
        now = int((folder / used).read_text(encoding="ascii"))
        rows = [line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()]
        cached = next((int(row[1]) for row in rows if row[0] == cache), 0)
    except (OSError, ValueError):
        return None
    return most, max(0, now - cached)


def configure_process(device: torch.device, *, threads: int | None = None) -> None:
    """Set what is global to a process, once, before training: threads, memory reuse, reproducible kernels.

    On a CPU, compiled kernels otherwise add up embedding gradients in any order (atomics), and two equal runs
    differ in the last bits. On CUDA, fp32 products run in TF32.
    """
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        bound_the_heap()
    else:
        torch.set_float32_matmul_precision("high")


HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
_MMAP_ABOVE = 4 << 20


def prefer_huge_pages() -> None:
    """Let torch ask for huge pages below large CPU tensors; before it makes its first tensor, when it reads this.

    A block that comes fresh from the system is then paid for in page faults of 2 MiB and not of 4 KiB.
    """
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")


def bound_the_heap() -> bool:
    """Tell glibc to map blocks from 4 MiB on one by one, and so to give each back when it is freed; false elsewhere.

    glibc before 2.38 finds a freed block again for an aligned request of the same size only where it has grown by a
    neighbor, and small blocks that live on keep neighbors apart: a heap of whole logits grew without an end. By
    default glibc raises this limit by itself, up to 32 MiB. Other allocators (jemalloc) ignore the setting.
    """
    m_mmap_threshold = -3  # <malloc.h>
    try:
        return ctypes.CDLL(None).mallopt(m_mmap_threshold, _MMAP_ABOVE) == 1
    except (OSError, AttributeError):
        return False
