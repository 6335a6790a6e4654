"""Checks of what training needs from a machine, one by one.

Each check is a function from the settings to findings. What can hang or crash (drivers, collectives, a tokenizer from
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
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from automodel_cli import __version__
from automodel_cli.config.schema.options import DoctorOptions
from automodel_cli.device import cpu_features
from automodel_cli.errors import AutomodelError
from automodel_cli.files import exclusive_lock
from automodel_cli.processes import cores, own_rank
from automodel_cli.text import binary_size, plural

Status = Literal["ok", "warning", "problem"]
HUB = "huggingface.co"
_SMALL_SHM = 1 << 30
_FEW_FILES = 4096
_LITTLE_DISK, _NO_DISK = 20 << 30, 1 << 30
_CLOCK_SKEW_S = 2.0
_PYTHON = (sys.executable, "-P")  # nothing is imported from the current folder


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do unless it is well."""

    name: str
    found: str
    status: Status = "ok"
    advice: str = ""


def run(cfg: DoctorOptions) -> list[Finding]:
    """All findings. A check that breaks is a finding too."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(cfg)
        except Exception as error:  # the report has to come, whatever is broken
            name, what = check.__name__.strip("_").replace("_", " "), f"{type(error).__name__}: {error}"
            found.append(Finding(name, what, "warning", "the check itself failed"))
    return found


def has_problem(findings: list[Finding]) -> bool:
    """Whether training cannot be expected to run here."""
    return any(finding.status == "problem" for finding in findings)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The report for programs."""
    return {"ok": not has_problem(findings), "findings": [asdict(finding) for finding in findings]}


# --------------------------------------------------------------------------------------------- versions


def _versions(cfg: DoctorOptions) -> Iterator[Finding]:
    yield Finding("automodel", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "transformers", "tokenizers", "safetensors"):
        try:
            yield Finding(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, "not installed", "problem", f"pip install {package}")


def _processor(cfg: DoctorOptions) -> Iterator[Finding]:
    features = cpu_features()
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in features]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kinds = ", ".join(known) or platform.machine()
    yield Finding("CPU", f"{plural(cores(), 'core')}, {binary_size(memory)} memory, {kinds}")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        advice = "torch.compile on the CPU needs one: install g++, or set compile: false"
        yield Finding("C++ compiler", "none", "warning", advice)


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
_OTHER_GPUS = "choose other GPUs with CUDA_VISIBLE_DEVICES"


def _torch(cfg: DoctorOptions) -> Iterator[Finding]:
    gpus = yield from _devices(cfg)
    if gpus is not None:
        yield _all_reduce(cfg, gpus)


def _devices(cfg: DoctorOptions) -> Generator[Finding, None, int | None]:
    """What torch sees; returns the number of GPUs, None where torch does not work."""
    driver = _nvidia("--query-gpu=driver_version,name", cfg)
    code, out, error = _in_a_process([*_PYTHON, "-c", _ASK_TORCH], cfg.timeout)
    if code != 0:
        advice = "`import torch` fails: reinstall torch, or check the driver"
        yield Finding("torch and devices", _last_line(error) or f"exit code {code}", "problem", advice)
        return None
    known = json.loads(out.splitlines()[-1])
    devices = known["devices"]
    if not devices:
        yield _no_gpu(driver, known)
        return 0
    version = driver[0].split(",")[0] if driver else "unknown"
    yield Finding("CUDA", f"{known['cuda'] or known['hip']}, NCCL {known['nccl']}, driver {version}")
    for index, device in enumerate(devices):
        yield _gpu(index, device)
    if users := _nvidia("--query-compute-apps=pid,used_memory,process_name", cfg):
        shown = "; ".join(users[:4]) + (f"; {len(users) - 4} more" if len(users) > 4 else "")
        yield Finding("GPU users", shown, "warning", f"wait for them to end, or {_OTHER_GPUS}")
    if len(devices) > 1:
        yield _peers(devices)
    return len(devices)


def _no_gpu(driver: list[str], known: dict[str, Any]) -> Finding:
    if not driver:
        return Finding("GPU", "none; training runs on the CPU")
    if known["cuda"] is None:
        found = f"{driver[0].split(',')[-1].strip()} is present, but torch does not see it"
        advice = "torch is built without CUDA: install the build for your driver (pytorch.org/get-started)"
        return Finding("GPU", found, "problem", advice)
    advice = f"check CUDA_VISIBLE_DEVICES and the driver: torch needs CUDA {known['cuda']}"
    return Finding("GPU", f"{len(driver)} present, but torch sees none", "problem", advice)


def _gpu(index: int, device: dict[str, Any]) -> Finding:
    capability, free, total = tuple(device["capability"]), device["free"], device["total"]
    types = [name for name, since in (("bf16", (8, 0)), ("fp8", (8, 9))) if capability >= since]
    room = f"{binary_size(free)} of {binary_size(total)} free"
    found = f"{device['name']}, {room}, {', '.join(types) or 'no bf16'}"
    if free < 0.5 * total:
        return Finding(f"GPU {index}", found, "warning", f"another process uses it; {_OTHER_GPUS}")
    return Finding(f"GPU {index}", found)


def _peers(devices: list[dict[str, Any]]) -> Finding:
    lonely = [index for index, device in enumerate(devices) if len(device["peers"]) < len(devices) - 1]
    if not lonely:
        return Finding("peer access", "every GPU reaches every other")
    found = f"GPU {', '.join(map(str, lonely))} cannot reach all others"
    advice = "collectives go through host memory; `nvidia-smi topo -m` shows how the GPUs are connected"
    return Finding("peer access", found, "warning", advice)


def _nvidia(query: str, cfg: DoctorOptions) -> list[str]:
    """Lines of nvidia-smi, none where it is not there or says nothing."""
    if shutil.which("nvidia-smi") is None:
        return []
    code, out, _ = _in_a_process(["nvidia-smi", query, "--format=csv,noheader"], cfg.timeout)
    return [line.strip() for line in out.splitlines() if line.strip()] if code == 0 else []


# ------------------------------------------------------------------------------------------ collectives

_ALL_REDUCE = """
import sys, time, torch, torch.distributed as dist, torch.multiprocessing as mp
store, size, gpus = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "gpu"

def meet(rank):
    torch.cuda.set_device(rank) if gpus else torch.set_num_threads(1)
    dist.init_process_group("nccl" if gpus else "gloo", init_method=store, rank=rank, world_size=size)
    ones = torch.ones(1 << 20, device="cuda" if gpus else "cpu")
    dist.all_reduce(ones)
    started = time.perf_counter()
    dist.all_reduce(ones)
    total = ones[0].item()
    assert total == size * size, total
    if rank == 0:
        print(f"{1e3 * (time.perf_counter() - started):.1f}", flush=True)
    dist.destroy_process_group()

mp.start_processes(meet, nprocs=size, start_method="fork")  # torch is imported once
"""


def _all_reduce(cfg: DoctorOptions, gpus: int) -> Finding:
    processes = cfg.processes or gpus or 2
    what = f"{plural(processes, 'process', 'processes')}, {'NCCL' if gpus else 'gloo'}"
    with tempfile.TemporaryDirectory() as folder:
        ranks = (f"file://{folder}/store", str(processes), "gpu" if gpus else "cpu")
        code, out, error = _in_a_process([*_PYTHON, "-c", _ALL_REDUCE, *ranks], cfg.timeout)
    if code == 0:
        return Finding("all_reduce", f"{what}: 4 MiB in {_last_line(out)} ms")
    advice = "choose the network interface with GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME (lo for one machine)"
    if gpus and code == -signal.SIGKILL:
        advice = "NCCL_DEBUG=INFO and NCCL_P2P_DISABLE=1 tell more"
    return Finding("all_reduce", f"{what}: {_last_line(error) or f'exit code {code}'}", "problem", advice)


def _environment(cfg: DoctorOptions) -> Iterator[Finding]:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
        yield Finding("host name", f"{socket.gethostname()} resolves")
    except OSError:
        advice = "runs on several machines need it: add it to /etc/hosts, or give --local-addr"
        yield Finding("host name", f"{socket.gethostname()} does not resolve", "warning", advice)
    if own_rank().launcher == "torchrun":
        found = f"RANK={os.environ['RANK']} WORLD_SIZE={os.environ['WORLD_SIZE']}"
        yield Finding("launcher", found, "warning", "automodel would wait for other ranks: unset both")
    names = [
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "NCCL_DEBUG",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
    ]
    if found := ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ):
        yield Finding("environment", found)


# --------------------------------------------------------------------------------------- limits and disk


def _limits(cfg: DoctorOptions) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard > 0 else 65536
    advice = f"ulimit -n {wanted}: corpora of many shards keep many files open"
    yield _judged("open files", f"at most {soft:,}", soft >= _FEW_FILES, advice)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "NCCL and data workers need more: docker run --ipc=host, or --shm-size=8g"
        yield _judged("shared memory", binary_size(size), size >= _SMALL_SHM, advice)


def _judged(name: str, found: str, is_well: bool, advice: str) -> Finding:
    return Finding(name, found) if is_well else Finding(name, found, "warning", advice)


def _disk(cfg: DoctorOptions) -> Iterator[Finding]:
    folder = _existing(Path(cfg.folder))
    try:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            yield _room(folder)
            yield _mapping(Path(own))
            yield _locking(Path(own))
            yield _clock(Path(own))
    except OSError as error:
        found = f"cannot write to {folder}: {error.strerror}"
        yield Finding("run folder", found, "problem", "choose another folder")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{binary_size(free)} in {folder}"
    if free >= _LITTLE_DISK:
        return Finding("free disk", found)
    advice = "a checkpoint takes 12 bytes a parameter: 1.4 GiB for 124M; checkpoint.keep_last limits them"
    return Finding("free disk", found, "problem" if free < _NO_DISK else "warning", advice)


def _mapping(own: Path) -> Finding:
    path = own / "mapped"
    path.write_bytes(b"1")
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ):
            return Finding("mmap", "works")
    except OSError as error:
        advice = "set dataset.mmap: false, which reads token files a little slower"
        return Finding("mmap", f"not on this file system: {error.strerror}", "warning", advice)


def _locking(own: Path) -> Finding:
    try:
        with exclusive_lock(own / "lock", busy="busy"):
            advice = "two runs in one folder will not be detected: give each its own checkpoint_dir"
            if not _is_held(own / "lock"):
                return Finding("file locks", "have no effect on this file system", "warning", advice)
    except OSError as error:
        advice = "the run folder needs a file system with flock"
        return Finding("file locks", str(error.strerror), "problem", advice)
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
    if abs(skew) <= _CLOCK_SKEW_S:
        return Finding("file system clock", "the same as this machine's")
    advice = "ages of checkpoints will be wrong by as much: synchronize the clocks (NTP)"
    return Finding("file system clock", f"{skew:+.1f} s off this machine's clock", "warning", advice)


# -------------------------------------------------------------------------------------------------- hub


def _hub(cfg: DoctorOptions) -> Iterator[Finding]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    place = _existing(cache)
    if os.access(place, os.W_OK):
        yield Finding("hub cache", f"{cache}, {binary_size(shutil.disk_usage(place).free)} free")
    else:
        advice = "set HF_HOME to a folder that you can write to"
        yield Finding("hub cache", f"cannot write to {cache}", "warning", advice)
    if cfg.offline:
        return
    question = "from automodel_cli.corpus.tokenizer import open_tokenizer; open_tokenizer('gpt2')"
    code, _, error = _in_a_process([*_PYTHON, "-c", question], cfg.timeout)
    advice = f"is {HUB} unreachable? Use a corpus with its own tokenizer, or copy one here (tokenizer: FOLDER)"
    found = "gpt2 loads" if code == 0 else f"gpt2: {_last_line(error) or 'no answer'}"
    yield _judged("tokenizer", found, code == 0, advice)


# ------------------------------------------------------------------------------------------- in general


def _in_a_process(command: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; -9 and how long it was waited for, of a command that did not end in time."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    try:
        process = subprocess.Popen(command, text=True, errors="replace", **pipes)
    except OSError as error:
        return 127, "", str(error)
    try:
        out, error_text = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # the ranks that it has started too
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return -signal.SIGKILL, "", f"no answer after {timeout_s:.0f} s"
    return process.returncode, out, error_text


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:200]


CHECKS: tuple[Callable[[DoctorOptions], Iterator[Finding]], ...] = (
    _versions, _processor, _torch, _environment, _limits, _disk, _hub,
)  # fmt: skip
