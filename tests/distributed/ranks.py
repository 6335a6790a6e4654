"""Several ranks in a test: ``run_ranks(4, check, argument, mesh={"tp": 2})`` calls ``check(world, argument)`` in four
processes joined over gloo, and returns what each of them returned.

``check`` is a function at the top of a test module (or "module:name"); arguments and results are JSON. A rank that
raises or dies fails the test with its traceback. Starting a rank costs about three seconds (importing torch), so one
call should check several things.
"""

from __future__ import annotations

import importlib
import json
import os
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
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(request)],
                stdout=Path(folder, f"{rank}.txt").open("w"),  # noqa: SIM115
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=_environment(rank, ranks, store.port, environment or {}),
            )
            for rank in range(ranks)
        ]
        problem = _wait(processes, timeout_s)
        said = [Path(folder, f"{rank}.txt").read_text() for rank in range(ranks)]
        if problem:
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
        **extra,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [(extra or os.environ).get("PYTHONPATH")])]),
    }


def _wait(processes: list[subprocess.Popen], timeout_s: float) -> str | None:
    """Wait for all; the first bad end, or None. The others get twenty seconds to say what they saw."""
    deadline, problem = time.monotonic() + timeout_s, None
    while any(process.poll() is None for process in processes):
        failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        if failed and problem is None:
            problem = f"rank {failed[0]} ended with {processes[failed[0]].returncode}"
            deadline = min(deadline, time.monotonic() + 20)
        if time.monotonic() > deadline:
            problem = problem or f"not done within {timeout_s:g} s"
            for process in processes:
                process.kill()
                process.wait()
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(processes) if process.returncode != 0]
    return problem or (f"rank {failed[0]} ended with {processes[failed[0]].returncode}" if failed else None)


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
