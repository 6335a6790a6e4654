"""torch's elastic agent with our manners: meet the other machines, start the workers, watch them, start them again.

Stock torchrun kills the other workers 30 s after one has ended, whatever the reason, and starts a preempted run again.
Here (``SimpleElasticAgent`` leaves exactly these four methods to a subclass, rendezvous and restarts are torch's):

1. a signal to the launcher goes to every worker, which get ``shutdown_timeout_s`` to save;
2. the exit code is that of the worker that failed first; 75 (preempted after a checkpoint) and 2 (wrong configuration)
   are never started again, a crash is, ``max_restarts`` times;
3. a machine that joins makes all workers save, leave, and start again with it;
4. after a crash the others get a few seconds to fail by themselves, so that the cause can be told from what follows
   from it; a rank that hangs is made to write where.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler

from automodel_cli.errors import EXIT_PREEMPTED
from automodel_cli.launch import meeting_point
from automodel_cli.launch.plan import LaunchPlan
from automodel_cli.launch.rendezvous import LaunchFailed, open_rendezvous, rendezvous_errors
from automodel_cli.launch.workers import ATTEMPT_VARIABLE, ProcessExit, Workers, root_cause

NOT_STARTED_AGAIN = (EXIT_PREEMPTED, 2)
FORWARDED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_SETTLE_S = 3.0  # for the others to fail by themselves after a crash
# Then for those that are asked to stop: nothing can be saved without the one that crashed.
_CRASH_TIMEOUT_S = 10.0
_PATIENCE = 3  # Ctrl-C as often as this kills the workers


def launch(
    plan: LaunchPlan,
    command: Sequence[str],
    *,
    log_folder: Path,
    say: Callable[[str], None],
    signals: Sequence[str] = (),
) -> int:
    """Run ``command`` in every process of the plan; 0, or 75 when all were preempted after a checkpoint.

    Args:
        command: what each worker executes, with RANK, WORLD_SIZE and the rest of torchrun's variables.
        log_folder: of this launch; one folder an attempt.
        signals: names of further signals to pass on.

    Raises:
        LaunchFailed: a worker failed (with its exit code), or the machines did not meet.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # A store that the agents share with the workers keeps what earlier workers wrote, and its first address though
    # machines come and go (torch 2.13): restarted workers may call processes that are gone, a newcomer waits for ever.
    # So the workers of each round meet at a store of their own.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with rendezvous_errors(plan):
        endpoint = meeting_point.find(plan, say=say)
        if plan.max_nodes > 1:
            several = f"{plan.min_nodes} to {plan.max_nodes}" if plan.is_elastic else f"{plan.max_nodes}"
            say(f"waiting at {plan.endpoint} for {several} machines, this one included")
        rendezvous = open_rendezvous(plan, endpoint)
        agent = Agent(plan, command, rendezvous, log_folder=log_folder, say=say)
        closes = True
        try:
            with agent.passing_signals_on([*FORWARDED, *signals]):
                result = agent.run()
        except SignalException as stopped:  # before any worker ran, or after all had ended
            closes = False
            return 128 + stopped.sigval
        finally:
            if closes:
                rendezvous.shutdown()
    if result is None or not result.is_failed():
        return 0
    assert agent.cause is not None
    if agent.cause.code == EXIT_PREEMPTED:
        return EXIT_PREEMPTED
    if (code := agent.stopped_early()) is not None:
        return code
    raise agent.failure()


class Agent(SimpleElasticAgent):
    """One machine's agent. ``cause`` is the failure that ended the newest attempt."""

    def __init__(
        self,
        plan: LaunchPlan,
        command: Sequence[str],
        rendezvous: RendezvousHandler,
        *,
        log_folder: Path,
        say: Callable[[str], None],
    ) -> None:
        spec = WorkerSpec(
            role="worker",
            local_world_size=plan.processes,
            rdzv_handler=rendezvous,
            entrypoint=command[0],
            args=tuple(command[1:]),
            max_restarts=plan.max_restarts,
            monitor_interval=plan.monitor_interval_s,
            local_addr=plan.local_addr,
        )
        super().__init__(spec)
        self.plan, self.command, self.log_folder, self.say = plan, list(command), log_folder, say
        self.cause: ProcessExit | None = None
        self.stop_signal: int | None = None
        self._stop_deadline = float("inf")
        self._interrupts = 0
        self._attempt = 0
        self._unanswering: list[int] = []
        self._workers: Workers | None = None

    # ------------------------------------------------------------------------------------------ signals

    @contextlib.contextmanager
    def passing_signals_on(self, names: Sequence[str]) -> Iterator[None]:
        """Handle these signals inside the block; one that was ignored (nohup) stays ignored."""
        numbers = {number for name in names if (number := getattr(signal, name, None)) is not None}
        before = {
            number: signal.signal(number, self._on_signal)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signal = number
        self._interrupts += number == signal.SIGINT
        if self._workers is None or not self._workers.running():
            raise SignalException(f"stopped by {signal.Signals(number).name}", signal.Signals(number))
        self._stop_deadline = min(self._stop_deadline, time.monotonic() + self.plan.shutdown_timeout_s)
        if self._interrupts >= _PATIENCE:
            self._workers.kill()
        else:
            self._workers.send(_passed_on(number))

    def stopped_early(self) -> int | None:
        """The exit code of workers that were asked to stop while they were not training: 130 for Ctrl-C, else 75."""
        assert self.cause is not None
        if self.stop_signal == signal.SIGINT and self.cause.exit_code == 128 + signal.SIGINT:
            return self.cause.exit_code
        if self.stop_signal is None or self.cause.code != -_passed_on(self.stop_signal):
            return None
        self.say(f"stopped by {signal.Signals(self.stop_signal).name} outside of training: run the same command again")
        return EXIT_PREEMPTED

    # ------------------------------------------------------------------ what torch's agent asks of a subclass

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.cause, self._unanswering = None, []
        environments = [self._environment(worker_group, worker) for worker in worker_group.workers]
        folder = self.log_folder / f"attempt_{self._attempt}"
        self._attempt += 1
        self._workers = Workers(self.command, environments, folder)
        if self.plan.max_nodes > 1:
            self.say(_where_it_joined(worker_group, self.plan.endpoint, folder))
        if self.stop_signal is not None:  # it came while they were being started
            self._workers.send(_passed_on(self.stop_signal))
        return self._workers.pids()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        assert self._workers is not None
        if time.monotonic() > self._stop_deadline:
            self._workers.kill()
        if self._workers.failed():
            return self._after_failure(worker_group, self._workers)
        if self._workers.running():
            return RunResult(WorkerState.HEALTHY)
        return RunResult(
            WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in worker_group.workers}
        )

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Before a new attempt. Workers that still run are healthy: a machine has joined."""
        if self._workers is not None and self._workers.running():
            self.say("another machine joins: saving, then all processes start again")
            self._workers.stop(signal.SIGTERM, self.plan.shutdown_timeout_s)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """At the very end, however it came."""
        if self._workers is not None and self._workers.running():
            self._workers.stop(death_sig, self.plan.shutdown_timeout_s if self.cause is None else timeout)

    # ------------------------------------------------------------------------------------------ failures

    def _after_failure(self, group: WorkerGroup, workers: Workers) -> RunResult:
        """Let the attempt end, find the cause, and decide whether there is another one."""
        self._let_end(workers)
        self.cause = root_cause(workers.failed())
        if self._makes_room_for_a_machine():
            return RunResult(WorkerState.HEALTHY)  # torch's loop sees the waiting machine and starts anew
        if self.cause.code in NOT_STARTED_AGAIN or self.stop_signal is not None:
            self._remaining_restarts = 0
        elif self._remaining_restarts > 0:
            number = self.plan.max_restarts - self._remaining_restarts + 1
            said = self.failure()
            self.say(f"{said.message}; all processes start again ({number} of {self.plan.max_restarts})")
            if said.hint:
                self.say(f"  {said.hint}")
        end, local_ranks = self.cause, {worker.global_rank: worker.local_rank for worker in group.workers}
        failure = ProcessFailure(local_ranks[end.rank], end.pid, end.code, error_file="")
        return RunResult(WorkerState.FAILED, failures={end.rank: failure})

    def _let_end(self, workers: Workers) -> None:
        """Wait for the others: long after a preemption, when they save; after a crash only to see who follows."""
        if all(end.code == EXIT_PREEMPTED for end in workers.failed()):
            patience = min(self.plan.shutdown_timeout_s, max(0.0, self._stop_deadline - time.monotonic()))
            if workers.wait(patience):
                return
        workers.wait(_SETTLE_S)
        if all(end.timed_out for end in workers.failed()):
            self._unanswering = workers.running()
            workers.kill(signal.SIGABRT)
        workers.stop(signal.SIGTERM, min(_CRASH_TIMEOUT_S, self.plan.shutdown_timeout_s))

    def _makes_room_for_a_machine(self) -> bool:
        """Whether the workers left because another machine's agent has seen a newcomer before this one did."""
        assert self.cause is not None
        return (
            self.cause.code == EXIT_PREEMPTED
            and self.stop_signal is None
            and self._worker_group.spec.rdzv_handler.num_nodes_waiting() > 0
        )

    def failure(self) -> LaunchFailed:
        """The cause in two lines, for people."""
        end = self.cause
        assert end is not None
        if self._unanswering:
            ranks = ", ".join(str(rank) for rank in self._unanswering)
            logs = self.log_folder / f"attempt_{self._attempt - 1}"
            return LaunchFailed(
                f"rank {ranks} did not answer; rank {end.rank}: {end.message}",
                f"where it hung is in {logs}/rank_{self._unanswering[0]}.log",
                exit_code=end.exit_code,
            )
        return LaunchFailed(
            f"rank {end.rank}: {end.message or _how_it_ended(end)}",
            "; ".join(filter(None, [_what_to_do(end), _where_to_look(end)])),
            exit_code=end.exit_code,
        )

    # --------------------------------------------------------------------------------------- environment

    def _environment(self, group: WorkerGroup, worker: Any) -> dict[str, str]:
        """torchrun's variables."""
        spec = group.spec
        return {
            "RANK": str(worker.global_rank),
            "LOCAL_RANK": str(worker.local_rank),
            "WORLD_SIZE": str(worker.world_size),
            "LOCAL_WORLD_SIZE": str(spec.local_world_size),
            "GROUP_RANK": str(group.group_rank),
            "GROUP_WORLD_SIZE": str(group.group_world_size),
            "ROLE_RANK": str(worker.role_rank),
            "ROLE_WORLD_SIZE": str(worker.role_world_size),
            "ROLE_NAME": spec.role,
            "MASTER_ADDR": str(group.master_addr),
            "MASTER_PORT": str(group.master_port),
            ATTEMPT_VARIABLE: str(self._attempt),
            "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": str(spec.rdzv_handler.use_agent_store),
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }


def _where_it_joined(group: WorkerGroup, endpoint: str, folder: Path) -> str:
    ranks = [worker.global_rank for worker in group.workers]
    here = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    assert group.group_rank is not None
    machine = f"machine {group.group_rank + 1} of {group.group_world_size}"
    where = f"joined {endpoint} as {machine}: {here} of {group.workers[0].world_size}"
    logged = ranks[1:] if ranks[0] == 0 else ranks  # rank 0 prints here
    more = " and so on" if len(logged) > 1 else ""
    return f"{where}, output in {folder}/rank_{logged[0]}.log{more}" if logged else where


def _passed_on(number: int) -> int:
    """A closed terminal means: save and leave."""
    return signal.SIGTERM if number == signal.SIGHUP else number


def _how_it_ended(end: ProcessExit) -> str:
    if end.code >= 0:
        return f"ended with exit code {end.code}"
    try:
        return f"killed by {signal.Signals(-end.code).name}"
    except ValueError:
        return f"killed by signal {-end.code}"


def _what_to_do(end: ProcessExit) -> str:
    if end.peer_lost:
        return "a process on another machine ended first: see what that one says"
    if end.code == -signal.SIGKILL and not end.by_us:
        return "the system kills what needs more memory than there is (dmesg shows it)"
    return end.hint


def _where_to_look(end: ProcessExit) -> str:
    if end.traceback is not None:
        return f"full traceback in {end.traceback}"
    return f"its output is in {end.log}" if end.log is not None else ""
