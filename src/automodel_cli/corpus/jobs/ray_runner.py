"""A job on a Ray cluster: each task is one Ray task; Ray decides where it runs, we what is done when it fails.

The package is installed on every machine, as its tokenizers must be, in the version of this process: workers say
which they have, because another one might write other bytes. All machines see the output's folder under the same path.
What Ray is asked for a task is one core and ``WORKER_BYTES`` of memory, and no more tasks are handed to it than the
cluster has room for. Only Ray's core is used (``pip install 'automodel-cli[ray]'``); its own retries are off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.build.pipeline import Progress
from automodel_cli.corpus.jobs import ray_worker
from automodel_cli.corpus.jobs.crew import TaskEvent, run_stages
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.tries import WorkerDied
from automodel_cli.errors import AutomodelError, ConfigError

WORKER_BYTES = 1 << 30
"""Memory that Ray is asked for each task."""
_LOOK_EVERY_S = 2.0  # at the size of the cluster, and at reports
_STARTS = 3
_CONNECT_S = 10.0
_STORE_BYTES = 80 << 20  # of a Ray of our own: only settings and reports go through it
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning less
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what it prints of a worker that died; we say which task is tried again
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # where it is off, every port of Ray is on 127.0.0.1


@dataclass(frozen=True)
class RayRunner:
    """All tasks on a cluster; see :class:`~automodel_cli.corpus.jobs.job.Runner`.

    Attributes:
        address: ``local`` (a Ray of our own, on this machine), ``auto`` (the one that ``RAY_ADDRESS`` names or that
            runs here), or ``HOST:PORT``.
        num_workers: cores of a Ray of our own; on a cluster the most tasks at a time, None: as many as it has room for.
    """

    address: str
    num_workers: int | None
    progress: Callable[[Progress], None]
    say: Callable[[str], None]

    def run(self, job: Job, open_job: Callable[[], Job]) -> bool:
        """Do all that is missing.

        Raises:
            ConfigError: Ray is not installed.
            AutomodelError: there is no such cluster, or a task failed for good.
        """
        with connected(self.address, self.num_workers) as ray:
            nodes = sum(node["Alive"] for node in ray.nodes())
            crew = RayCrew(ray, open_job, self.num_workers, self.say)
            self.say(f"Ray {ray.__version__}: {nodes} machine{'s' * (nodes != 1)}, {crew.slots} tasks at a time")
            run_stages(job, crew, self.progress, self.say)
        return True


def check_installed() -> None:
    """Before anything is begun.

    Raises:
        ConfigError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--runner ray needs the package ray", "pip install 'automodel-cli[ray]'")


@contextlib.contextmanager
def connected(address: str, num_workers: int | None) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster; a connection that was there before is used and stays.

    Raises:
        AutomodelError: there is no such cluster.
    """
    before = dict(os.environ)
    os.environ.update(_QUIET | (_LOOPBACK if address == "local" else {}))
    try:
        import ray

        if ray.is_initialized():
            yield ray
            return
        if address == "local":
            _start_own(ray, num_workers)
        else:
            _join(ray, address)
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        yield ray
    finally:
        ray.shutdown()


def _start_own(ray: Any, num_workers: int | None) -> None:
    """A Ray on this machine. It gives its own processes half a minute, which on a busy machine may not be enough."""
    own = {"num_cpus": num_workers, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for attempt in range(_STARTS):
        try:
            ray.init(address="local", logging_level=logging.CRITICAL, log_to_driver=False, **own)
            return
        except Exception as error:  # of no class of its own
            ray.shutdown()
            if attempt == _STARTS - 1:
                hint = "the machine may be too busy; the same command tries again"
                raise AutomodelError(f"Ray does not start here: {_first_line(error)}", hint) from error


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":  # Ray itself goes on trying for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except Exception as error:
        ray.shutdown()
        raise AutomodelError(
            f"no Ray cluster answers at {address}: {_first_line(error)}",
            "start one with `ray start --head`, give its HOST:PORT, or use --ray-address local",
        ) from error


class RayCrew:
    """A crew of Ray tasks."""

    def __init__(
        self, ray: Any, open_job: Callable[[], Job], most: int | None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._ray, self._most, self._say = ray, most, say
        self._settings = ray_worker.Settings(os.urandom(8), pickle.dumps(open_job), str(Path.cwd()), __version__)
        self._running: dict[Any, int] = {}
        self._looked_s = float("-inf")
        self._slots = 0
        self._bytes = WORKER_BYTES
        self._reports = _report_board(ray)
        self._asked: Any = None

    @property
    def slots(self) -> int:
        """Tasks that the cluster has room for: by cores, by memory, and no more than were asked for."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            slots, self._bytes = room_on([node["Resources"] for node in self._ray.nodes() if node["Alive"]])
            if slots == 0 and self._slots:
                self._say("no machine of the Ray cluster has room for a task: waiting for one")
            self._slots = slots
        return self._slots if self._most is None else min(self._slots, self._most)

    def room(self) -> int:
        """One task for each core, while the memory lasts; one at least, so that an empty cluster is waited for."""
        return max(1, self.slots) - len(self._running)

    def start(self, stage: str, task: int) -> None:
        """Hand a task to Ray."""
        options = {"num_cpus": 1, "memory": self._bytes, "max_retries": 0, "name": f"automodel {stage} {task}"}
        remote = self._ray.remote(**options)(ray_worker.run_task)
        self._running[remote.remote(self._settings, stage, task, self._reports)] = task

    def events(self, timeout_s: float, tell: Callable[[TaskEvent], None]) -> None:
        """What came back, and what those under way report."""
        ready, _ = self._ray.wait(list(self._running), timeout=timeout_s, num_returns=1)
        more, _ = self._ray.wait(list(self._running), timeout=0, num_returns=len(self._running))
        self._tell_reports(tell)
        for ref in {*ready, *more}:
            tell(self._result(ref, self._running.pop(ref)))

    def _result(self, ref: Any, task: int) -> TaskEvent:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(ref)
        except errors.RayTaskError as error:
            return TaskEvent(task, error=_raised_there(error))
        except errors.RayError as error:
            hint = "see `ray status` and Ray's logs; the same command goes on from there"
            return TaskEvent(task, error=WorkerDied(f"its worker or machine died ({_first_line(error)})", hint))
        if isinstance(answer, AutomodelError):
            return TaskEvent(task, error=answer)
        return TaskEvent(task, answer, is_done=True)

    def _tell_reports(self, tell: Callable[[TaskEvent], None]) -> None:
        """Reports of tasks under way; the board may have died with its machine, and then there are none."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            if self._asked is None:
                self._asked = self._reports.take.remote()
            if not self._ray.wait([self._asked], timeout=0)[0]:
                return
            asked, self._asked = self._asked, None
            for task, report in self._ray.get(asked).items():
                tell(TaskEvent(task, report))


def room_on(machines: list[dict[str, float]]) -> tuple[int, int]:
    """How many tasks fit on machines with these resources, and the memory to ask for each.

    Where no machine has ``WORKER_BYTES`` for Ray to give, memory is not asked for: tasks would wait for ever.
    """
    cores = sum(int(one.get("CPU", 0)) for one in machines)
    fitting = sum(min(int(one.get("CPU", 0)), int(one.get("memory", 0)) // WORKER_BYTES) for one in machines)
    return (fitting, WORKER_BYTES) if fitting else (cores, 0)


def _report_board(ray: Any) -> Any:
    """Where tasks report: an actor beside this process, which is asked now and then."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(ray_worker.ReportBoard)
    return board.remote()


def _raised_there(error: Any) -> BaseException:
    """What a task raised that is none of ours: a mistake, or a machine without the package."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ModuleNotFoundError):
        return ConfigError(
            f"a machine of the Ray cluster cannot import {cause.name}",
            f"install automodel-cli {__version__} with Ray there: pip install 'automodel-cli[ray]'",
        )
    return RuntimeError(f"a worker failed:\n{error}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
