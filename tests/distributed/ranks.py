"""Several ranks in a test: ``run_ranks(4, check, argument, mesh={"tp": 2})`` calls ``check(world, argument)`` in four
processes joined over gloo, and returns what each of them returned.

``check`` is a function at the top of a test module (or "module:name"); arguments and results are JSON. A rank that
raises or dies fails the test with its traceback. Ranks are children of the nursery, so that a start costs a quarter of
a second; still, one call should check several things.
"""

from __future__ import annotations

import contextlib
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

from tests import nursery

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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        request = Path(folder, "request.json")
        request.write_text(json.dumps({"name": name, "arguments": arguments, "mesh": mesh or {}}))
        outputs = [Path(folder, f"{rank}.txt") for rank in range(ranks)]
        processes = []
        for rank, output in enumerate(outputs):
            environ = _environment(rank, ranks, store.port, environment or {})
            file = opened.enter_context(output.open("w"))
            command = [sys.executable, __file__, str(request)]
            processes.append(nursery.Popen(command, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT))
        if problem := _wait(processes, timeout_s):
            said = [output.read_text() for output in outputs]
            shown = "\n".join(f"--- rank {rank} ---\n{text[-6000:]}" for rank, text in enumerate(said))
            raise AssertionError(f"{problem}\n{shown}")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]


def _environment(rank: int, ranks: int, port: int, extra: dict[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        **extra,
    }


def _wait(processes: list[Any], timeout_s: float) -> str | None:
    """Wait for all; the first bad end, or None. The others get twenty seconds to say what they saw."""
    deadline, problem = time.monotonic() + timeout_s, None
    while any(process.poll() is None for process in processes):
        if problem is None and (problem := _first_failure(processes)):
            deadline = min(deadline, time.monotonic() + 20)
        if time.monotonic() > deadline:
            problem = problem or f"not done within {timeout_s:g} s"
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        time.sleep(0.02)
    return problem or _first_failure(processes)


def _first_failure(processes: list[Any]) -> str | None:
    """The first rank, in time, that ended badly."""
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if not failed:
        return None
    first = min(failed, key=lambda rank: processes[rank].ended_at)
    return f"rank {first} ended with {processes[first].returncode}"


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
    _main(Path(sys.argv[1]))
