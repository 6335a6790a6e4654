"""Several ranks in a test: ``run_ranks(4, check, argument, mesh={"tp": 2})`` calls ``check(world, argument)`` in four
processes joined over gloo, and returns what each of them returned.

``check`` is a function at the top of a test module (or "module:name"); arguments and results are JSON. A rank that
raises or dies fails the test with its traceback. One process imports everything (torch: four seconds) and forks the
ranks, before there is any thread; still, one call should check several things.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_ranks(
    ranks: int,
    function: Callable[..., Any] | str,
    *arguments: Any,
    mesh: dict[str, int] | None = None,
    timeout_s: float = 180,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """Results of ``function(world, *arguments)`` by rank.

    Args:
        ranks: number of processes; 1 gives the function ``World.single()``, also in a process of its own.
        mesh: sizes by axis name (dp_replicate, dp_shard, cp, tp); a missing dp_shard takes what is left.
        timeout_s: afterwards all ranks are killed and the test fails with what each of them said.
        environment: variables on top of this process's.
    """
    import torch.distributed as dist

    # Held by this process on a port the system chose: as torchrun does it, and no two tests meet.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__name__}"
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder, "request.json")
        request.write_text(json.dumps({"name": name, "arguments": arguments, "mesh": mesh or {}}))
        with Path(folder, "start.txt").open("w") as said_first:
            nursery = subprocess.Popen(
                [sys.executable, __file__, str(request), str(ranks)],
                stdout=said_first,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=_environment(ranks, store.port, environment or {}),
                start_new_session=True,  # a group of its own, to be ended as one
            )
        problem = _wait(nursery, Path(folder), ranks, timeout_s)
        said = [_text(Path(folder, f"{rank}.txt")) for rank in range(ranks)]
        if problem:
            shown = "\n".join(f"--- rank {rank} ---\n{text[-6000:]}" for rank, text in enumerate(said))
            raise AssertionError(f"{problem}\n{_text(Path(folder, 'start.txt'))}{shown}")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]


def _environment(ranks: int, port: int, extra: dict[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        **extra,
    }


def _wait(nursery: subprocess.Popen, folder: Path, ranks: int, timeout_s: float) -> str | None:
    """Wait for all; the first bad end, or None. The others get twenty seconds to say what they saw."""
    deadline, problem = time.monotonic() + timeout_s, None
    while nursery.poll() is None:
        problem = problem or _first_failure(folder)
        if problem:
            deadline = min(deadline, time.monotonic() + 20)
        if time.monotonic() > deadline:
            os.killpg(nursery.pid, signal.SIGKILL)
            nursery.wait()
            problem = problem or f"not done within {timeout_s:g} s"
        time.sleep(0.05)
    problem = problem or _first_failure(folder)
    if problem is None and len(list(folder.glob("*.code"))) < ranks:
        problem = f"the ranks were not started (exit code {nursery.returncode})"
    return problem


def _first_failure(folder: Path) -> str | None:
    """The first rank, in time, that ended badly."""
    ends = sorted(folder.glob("*.code"), key=lambda path: path.stat().st_mtime_ns)
    return next((f"rank {path.stem} ended with {_text(path)}" for path in ends if _text(path) != "0"), None)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _start(request: Path, ranks: int) -> None:
    """Import what the ranks need, fork them, and write down how each one ends. Returns in each rank when it is done."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module(json.loads(request.read_text())["name"].partition(":")[0])
    sys.stdout.flush()
    children = {}
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            output = os.open(request.with_name(f"{rank}.txt"), os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            _main(request)
            return
        children[child] = rank
    while children:
        child, status = os.wait()
        code = request.with_name(f"{children.pop(child)}.code")
        code.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
        code.with_suffix(".new").rename(code)


def _main(request: Path) -> None:
    """What each rank executes."""
    import torch

    from automodel_cli.distributed.start import join, leave

    torch.set_num_threads(1)
    asked = json.loads(request.read_text())
    module, _, name = asked["name"].partition(":")
    function = getattr(importlib.import_module(module), name)
    world = join("cpu", sizes=asked["mesh"], timeout=timedelta(seconds=120))
    result = function(world, *asked["arguments"])
    request.with_name(f"{world.rank}.json").write_text(json.dumps(result))
    leave(world)


if __name__ == "__main__":
    _start(Path(sys.argv[1]), int(sys.argv[2]))
