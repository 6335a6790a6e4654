"""Checks of what training needs from a machine, one by one.

Each check is a function from the request to findings. What can hang or crash (drivers, collectives, a tokenizer from
the hub) runs in processes of its own with a timeout, so the report always comes.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from automodel_cli import __version__
from automodel_cli.device import cpu_features
from automodel_cli.errors import AutomodelError
from automodel_cli.files import exclusive_lock
from automodel_cli.processes import cores, own_rank

Status = Literal["ok", "warning", "problem"]
HUB = "huggingface.co"
_SMALL_SHM = 1 << 30
_FEW_FILES = 4096
_LITTLE_DISK, _NO_DISK = 20 << 30, 1 << 30
_CLOCK_SKEW_S = 2.0
_MEBIBYTE = 1 << 20
_PYTHON = (sys.executable, "-P")  # nothing is imported from the current folder


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do unless it is well."""

    name: str
    found: str
    status: Status = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Request:
    """Settings of the checks.

    Attributes:
        folder: where runs will be written.
        processes: of the collective; None: one for each GPU, two without.
        timeout_s: for each thing that runs in a process of its own.
        hub: whether the network is asked.
    """

    folder: Path = Path()
    processes: int | None = None
    timeout_s: float = 60.0
    hub: bool = True


def run(request: Request) -> list[Finding]:
    """All findings. A check that breaks is a finding too."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(request)
        except Exception as error:  # the report has to come, whatever is broken
            what = f"{type(error).__name__}: {error}"
            found.append(
                Finding(
                    check.__name__.strip("_").replace("_", " "), what, "warning", "the check itself failed"
                )
            )
    return found


def has_problem(findings: list[Finding]) -> bool:
    """Whether training cannot be expected to run here."""
    return any(finding.status == "problem" for finding in findings)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The report for programs."""
    return {"ok": not has_problem(findings), "findings": [asdict(finding) for finding in findings]}


# --------------------------------------------------------------------------------------------- versions


def _versions(request: Request) -> Iterator[Finding]:
    yield Finding("automodel", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "transformers", "tokenizers", "safetensors"):
        try:
            yield Finding(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, "not installed", "problem", f"pip install {package}")


def _processor(request: Request) -> Iterator[Finding]:
    features = cpu_features()
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in features]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield Finding("CPU", f"{cores()} cores, {pages:.0f} GiB memory, {', '.join(known) or platform.machine()}")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        yield Finding(
            "C++ compiler",
            "none",
            "warning",
            "torch.compile on the CPU needs one: install g++, or compile: false",
        )


# ---------------------------------------------------------------------------------------------- devices

_ASK_TORCH = """
import json, torch
cuda = torch.cuda
devices = []
for index in range(cuda.device_count()):
    properties = cuda.get_device_properties(index)
    free, total = cuda.mem_get_info(index)
    devices.append({
        "name": properties.name, "total": total, "free": free, "capability": [properties.major, properties.minor],
        "peers": [p for p in range(cuda.device_count()) if p != index and cuda.can_device_access_peer(index, p)],
    })
nccl = ".".join(map(str, cuda.nccl.version())) if torch.version.cuda and devices else None
print(json.dumps({"cuda": torch.version.cuda, "hip": torch.version.hip, "nccl": nccl, "devices": devices}))
"""


def _devices(request: Request) -> Iterator[Finding]:
    driver = _nvidia("--query-gpu=driver_version,name", request)
    code, out, error = _in_a_process([*_PYTHON, "-c", _ASK_TORCH], request.timeout_s)
    if code != 0:
        advice = "`import torch` fails: reinstall torch, or check the driver"
        yield Finding("torch and devices", _last_line(error) or f"exit code {code}", "problem", advice)
        return
    known = json.loads(out.splitlines()[-1])
    devices = known["devices"]
    if not devices:
        yield _no_gpu(driver, known)
        return
    yield Finding(
        "CUDA", f"{known['cuda'] or known['hip']}, NCCL {known['nccl']}, driver {driver[0].split(',')[0]}"
    )
    for index, device in enumerate(devices):
        yield _gpu(index, device)
    yield from _who_uses_them(request)
    yield from _peers(devices)


def _no_gpu(driver: list[str], known: dict[str, Any]) -> Finding:
    if not driver:
        return Finding("GPU", "none; training runs on the CPU")
    if known["cuda"] is None:
        advice = "torch is built without CUDA: install the build for your driver (pytorch.org/get-started)"
        return Finding(
            "GPU",
            f"{driver[0].split(',')[-1].strip()} is present, but torch does not see it",
            "problem",
            advice,
        )
    advice = f"check CUDA_VISIBLE_DEVICES and the driver: torch needs CUDA {known['cuda']}"
    return Finding("GPU", f"{len(driver)} present, but torch sees none", "problem", advice)


def _gpu(index: int, device: dict[str, Any]) -> Finding:
    free, total = device["free"] / 2**30, device["total"] / 2**30
    capability = tuple(device["capability"])
    types = [name for name, since in (("bf16", (8, 0)), ("fp8", (8, 9))) if capability >= since] or [
        "no bf16"
    ]
    found = f"{device['name']}, {free:.1f} of {total:.1f} GiB free, {', '.join(types)}"
    if free < 0.5 * total:
        return Finding(
            f"GPU {index}",
            found,
            "warning",
            "another process uses it; choose others with CUDA_VISIBLE_DEVICES",
        )
    return Finding(f"GPU {index}", found)


def _who_uses_them(request: Request) -> Iterator[Finding]:
    users = _nvidia("--query-compute-apps=pid,used_memory,process_name", request)
    if users:
        shown = "; ".join(users[:4]) + (f"; {len(users) - 4} more" if len(users) > 4 else "")
        yield Finding(
            "GPU users",
            shown,
            "warning",
            "wait for them to end, or choose other GPUs with CUDA_VISIBLE_DEVICES",
        )


def _peers(devices: list[dict[str, Any]]) -> Iterator[Finding]:
    if len(devices) < 2:
        return
    lonely = [index for index, device in enumerate(devices) if len(device["peers"]) < len(devices) - 1]
    if lonely:
        advice = "collectives go through host memory; `nvidia-smi topo -m` shows how the GPUs are connected"
        yield Finding(
            "peer access", f"GPU {', '.join(map(str, lonely))} cannot reach all others", "warning", advice
        )
    else:
        yield Finding("peer access", "every GPU reaches every other")


def _nvidia(query: str, request: Request) -> list[str]:
    """Lines of nvidia-smi, none where it is not there or says nothing."""
    if shutil.which("nvidia-smi") is None:
        return []
    code, out, _ = _in_a_process(["nvidia-smi", query, "--format=csv,noheader"], request.timeout_s)
    return [line.strip() for line in out.splitlines() if line.strip()] if code == 0 else []


# ------------------------------------------------------------------------------------------ collectives

_ALL_REDUCE = """
import os, sys, time, torch, torch.distributed as dist
rank, size, gpus = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), sys.argv[2] == "gpu"
if gpus:
    torch.cuda.set_device(rank)
dist.init_process_group("nccl" if gpus else "gloo", init_method=sys.argv[1], rank=rank, world_size=size)
ones = torch.ones(1 << 20, device="cuda" if gpus else "cpu")
dist.all_reduce(ones)
started = time.perf_counter()
dist.all_reduce(ones)
total = ones[0].item()
assert total == size * size, total
if rank == 0:
    print(f"{1e3 * (time.perf_counter() - started):.1f}")
dist.destroy_process_group()
"""


def _all_reduce(request: Request) -> Iterator[Finding]:
    gpus = _gpus(request)
    processes = request.processes or gpus or 2
    what = f"{processes} process{'es' * (processes > 1)}, {'NCCL' if gpus else 'gloo'}"
    with tempfile.TemporaryDirectory() as folder:
        command = [*_PYTHON, "-c", _ALL_REDUCE, f"file://{folder}/store", "gpu" if gpus else "cpu"]
        ranks = [_start_rank(command, rank, processes, Path(folder)) for rank in range(processes)]
        hung = _wait(ranks, request.timeout_s)
        said = [Path(folder, f"{rank}.txt").read_text(errors="replace") for rank in range(processes)]
    failed = [rank for rank, process in enumerate(ranks) if process.returncode != 0]
    if hung:
        advice = "NCCL_DEBUG=INFO and NCCL_P2P_DISABLE=1 tell more" if gpus else _INTERFACE_ADVICE
        yield Finding("all_reduce", f"{what}: no result after {request.timeout_s:.0f} s", "problem", advice)
    elif failed:
        found = f"{what}: rank {failed[0]}: {_last_line(said[failed[0]])}"
        yield Finding("all_reduce", found, "problem", _INTERFACE_ADVICE)
    else:
        yield Finding("all_reduce", f"{what}: 4 MiB in {_last_line(said[0])} ms")


_INTERFACE_ADVICE = (
    "choose the network interface with GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME (lo for one machine)"
)


def _gpus(request: Request) -> int:
    """GPUs that torch sees (CUDA_VISIBLE_DEVICES counts)."""
    question = "import torch; print(torch.cuda.device_count())"
    code, out, _ = _in_a_process([*_PYTHON, "-c", question], request.timeout_s)
    return int(out) if code == 0 and out.strip().isdigit() else 0


def _start_rank(command: list[str], rank: int, size: int, folder: Path) -> subprocess.Popen[bytes]:
    with Path(folder, f"{rank}.txt").open("wb") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(processes: list[subprocess.Popen[bytes]], timeout_s: float) -> bool:
    """Wait for all, a little only once one has failed; whether they hung, rather than failed."""
    deadline = time.monotonic() + timeout_s
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if any(process.returncode for process in processes):
            deadline = min(deadline, time.monotonic() + 3)
        time.sleep(0.05)
    hung = [process for process in processes if process.poll() is None]
    for process in hung:
        process.kill()
        process.wait()
    return bool(hung) and not any(process.returncode > 0 for process in processes)


def _environment(request: Request) -> Iterator[Finding]:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
        yield Finding("host name", f"{socket.gethostname()} resolves")
    except OSError:
        advice = "several machines need it: add it to /etc/hosts, or give --local-addr"
        yield Finding("host name", f"{socket.gethostname()} does not resolve", "warning", advice)
    if own_rank().launcher == "torchrun":
        found = f"RANK={os.environ['RANK']} WORLD_SIZE={os.environ['WORLD_SIZE']}"
        yield Finding("launcher", found, "warning", "automodel would wait for other ranks: unset both")
    names = (
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "NCCL_DEBUG",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
    )
    if found := ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ):
        yield Finding("environment", found)


# --------------------------------------------------------------------------------------- limits and disk


def _limits(request: Request) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        advice = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}: corpora of many shards keep many files open"
        yield Finding("open files", f"at most {soft:,}", "warning", advice)
    else:
        yield Finding("open files", f"at most {soft:,}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "NCCL and data workers need it: docker run --ipc=host, or --shm-size=8g"
        small = size < _SMALL_SHM
        yield Finding("shared memory", _size(size), "warning" if small else "ok", advice if small else "")


def _disk(request: Request) -> Iterator[Finding]:
    folder = _existing(request.folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            yield _room(folder)
            yield _mapping(Path(own))
            yield _locking(Path(own))
            yield _clock(Path(own))
    except OSError as error:
        yield Finding(
            "run folder", f"cannot write to {folder}: {error.strerror}", "problem", "choose another folder"
        )


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < _LITTLE_DISK:
        status: Status = "problem" if free < _NO_DISK else "warning"
        advice = "a checkpoint takes 12 bytes a parameter: 1.4 GiB for 124M; checkpoint.keep_last limits them"
        return Finding("free disk", f"{_size(free)} in {folder}", status, advice)
    return Finding("free disk", f"{_size(free)} in {folder}")


def _mapping(own: Path) -> Finding:
    path = own / "mapped"
    path.write_bytes(bytes(_MEBIBYTE))
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert len(view) == _MEBIBYTE
    except OSError as error:
        advice = "set dataset.mmap: false, which reads token files a little slower"
        return Finding("mmap", f"not on this file system: {error.strerror}", "warning", advice)
    return Finding("mmap", "works")


def _locking(own: Path) -> Finding:
    try:
        with exclusive_lock(own / "lock", busy="busy"):
            if not _is_held(own / "lock"):
                advice = "two runs in one folder will not be detected: give each its own checkpoint_dir"
                return Finding("file locks", "have no effect on this file system", "warning", advice)
    except OSError as error:
        return Finding(
            "file locks", str(error.strerror), "problem", "the run folder needs a file system with flock"
        )
    return Finding("file locks", "work")


def _is_held(path: Path) -> bool:
    try:
        with exclusive_lock(path, busy="busy"):
            return False
    except AutomodelError:
        return True


def _clock(own: Path) -> Finding:
    (own / "now").write_text("")
    skew = (own / "now").stat().st_mtime - time.time()
    if abs(skew) > _CLOCK_SKEW_S:
        advice = "ages of checkpoints will be wrong by as much: synchronize the clocks (NTP)"
        return Finding("file system clock", f"{skew:+.1f} s off this machine's clock", "warning", advice)
    return Finding("file system clock", "the same as this machine's")


# -------------------------------------------------------------------------------------------------- hub


def _hub(request: Request) -> Iterator[Finding]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    place = _existing(cache)
    if not os.access(place, os.W_OK):
        yield Finding(
            "hub cache",
            f"cannot write to {cache}",
            "warning",
            "set HF_HOME to a folder that you can write to",
        )
    else:
        yield Finding("hub cache", f"{cache}, {_size(shutil.disk_usage(place).free)} free")
    if not request.hub:
        return
    question = "from automodel_cli.corpus.tokenizer import open_tokenizer; open_tokenizer('gpt2')"
    code, _, error = _in_a_process([*_PYTHON, "-c", question], request.timeout_s)
    if code == 0:
        yield Finding("tokenizer", "gpt2 loads")
    else:
        advice = (
            f"is {HUB} unreachable? Use a corpus with its own tokenizer, or copy one here (tokenizer: FOLDER)"
        )
        yield Finding("tokenizer", f"gpt2: {_last_line(error) or 'no answer'}", "warning", advice)


# ------------------------------------------------------------------------------------------- in general


def _in_a_process(command: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; -9 and nothing of a command that did not end in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, errors="replace")
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL, "", f"no answer after {timeout_s:.0f} s"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:200]


def _size(number: float) -> str:
    return f"{number / 2**30:,.1f} GiB"


CHECKS: tuple[Callable[[Request], Iterator[Finding]], ...] = (
    _versions,
    _processor,
    _devices,
    _all_reduce,
    _environment,
    _limits,
    _disk,
    _hub,
)
