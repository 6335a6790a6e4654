"""The launcher with small scripts as workers: exit codes, signals, restarts, one message, several machines."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests import nursery
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from automodel_cli.launch import agent as elastic
from automodel_cli.launch.agent import Agent, LaunchFailed, launch
from automodel_cli.launch.plan import plan_launch

ROOT = Path(__file__).resolve().parents[2]
WORKER = """\
import json, os, signal, sys, time
rank, attempt = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
world = int(os.environ["WORLD_SIZE"])
caught = []
def note(number, frame):
    caught.append(signal.Signals(number).name)
for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), note)
def ready():
    whole = f"ready_{rank}_{attempt}_{world}"  # for those who wait for the name and read at once
    with open(f".{whole}", "w") as file:
        file.write(json.dumps({"env": dict(os.environ), "pid": os.getpid()}))
    os.rename(f".{whole}", whole)
def saved():
    open(f"saved_{rank}_{attempt}", "w").write(" ".join(caught))
    sys.exit(75)
def fail(message, code=1, hint=""):
    with open(os.environ["AUTOMODEL_ERROR_FILE"], "w") as file:
        file.write(json.dumps({"rank": int(rank), "time": time.time(), "message": message, "hint": hint}))
    sys.exit(code)
def until_asked():
    while not caught:
        time.sleep(0.02)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(script, processes=2, flags...)``: the exit code, or the LaunchFailed itself; ``run.said`` its lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(elastic, "_SETTLE_S", 0.7)
    monkeypatch.setattr(elastic, "_CRASH_TIMEOUT_S", 1.0)
    # torch names each of its events after a function on the stack and reads all sources of the stack for it: among the
    # modules of a whole suite 30 ms, fifty times a launch.
    monkeypatch.setattr(dynamic_rendezvous, "get_method_name", lambda depth=2: "event")

    def run(script: str, *, processes: int = 2, signals=(), **flags):
        Path("worker.py").write_text(WORKER + script)
        plan = plan_launch({key.replace("_", "-"): str(value) for key, value in flags.items()}, processes=processes)
        run.said = []
        try:
            return launch(
                plan,
                [sys.executable, "worker.py"],
                log_folder=tmp_path / "logs",
                say=run.said.append,
                signals=signals,
            )
        except LaunchFailed as failed:
            return failed

    return run


def send(number: int, *, when: str, times: int = 1) -> None:
    """Send this process a signal, from another thread, once that many files are there."""

    def wait_and_send() -> None:
        for count in range(times):
            while len(list(Path().glob(when))) < 2:
                time.sleep(0.02)
            time.sleep(0.3 * count)
            os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_send, daemon=True).start()


def test_every_worker_knows_its_place(run):
    assert run("ready()", processes=3) == 0
    found = [json.loads(Path(f"ready_{rank}_0_3").read_text())["env"] for rank in range(3)]
    assert [env["LOCAL_RANK"] for env in found] == ["0", "1", "2"]
    for name, value in {
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }.items():
        assert {env[name] for env in found} == {value}
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in found}) == 1
    assert run.said == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_reaches_every_worker_which_has_time_to_save(run, number):
    """The second one takes longer than the first; stock torchrun would restart the run, or kill what saves."""
    send(number, when="ready_*")
    name = signal.Signals(number).name
    assert run("ready(); until_asked(); time.sleep(int(rank)); saved()", signals=["SIGUSR2"], max_restarts=3) == 75
    assert [Path(f"saved_{rank}_0").read_text() for rank in (0, 1)] == [name, name]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_does_not_save_in_time_is_killed(run):
    send(signal.SIGTERM, when="ready_*")
    failed = run("ready(); until_asked(); time.sleep(6000 * int(rank)); saved()", shutdown_timeout=2)
    assert failed == 75, "the first to end is who saved; who was killed afterwards is no cause"
    assert Path("saved_0_0").exists() and not Path("saved_1_0").exists()
    pid = json.loads(Path("ready_1_0_2").read_text())["pid"]
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_training_listens_is_no_error(run, number, code):
    """During imports and set-up a worker dies of the signal, or of Ctrl-C's exception; there is nothing to save."""
    send(number, when="ready_*")
    undo = "for name in ('SIGTERM', 'SIGUSR1'):\n    signal.signal(getattr(signal, name), signal.SIG_DFL)\n"
    undo += "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
    assert run(undo + "ready(); time.sleep(60)", max_restarts=1) == code
    assert len(run.said) == (code == 75)


def test_three_times_ctrl_c_is_enough(run):
    send(signal.SIGINT, when="ready_*", times=3)
    failed = run("ready(); time.sleep(60); time.sleep(60); time.sleep(60)")
    assert failed.exit_code == 137


def test_a_crash_is_started_again_and_told_once(run):
    script = "if attempt == 0 and rank == '1': fail('ValueError: odd', hint='even it')\nif attempt == 0: until_asked()"
    assert run(script, max_restarts=1) == 0
    assert run.said[0] == "rank 1: ValueError: odd; all processes start again (1 of 1)"
    assert "even it" in run.said[1] and "attempt_0/rank_1_error.txt" in run.said[1]
    assert len(run.said) == 2


def test_the_exit_code_is_that_of_the_first_failure(run):
    failed = run("if rank == '1': fail('DataError: gone', code=3)\nuntil_asked(); sys.exit(5)", max_restarts=1)
    assert failed.exit_code == 3
    assert failed.message == "rank 1: DataError: gone"
    assert "full traceback in" in failed.hint and failed.hint.endswith("attempt_1/rank_1_error.txt")


@pytest.mark.parametrize("code", [75, 2])
def test_a_preemption_or_a_wrong_configuration_is_not_started_again(run, code):
    found = run(f"ready(); sys.exit({code})", max_restarts=3)
    assert (found if code == 75 else found.exit_code) == code
    assert sorted(path.name for path in Path().glob("ready_*")) == ["ready_0_0_2", "ready_1_0_2"]


def test_a_killed_rank_is_named_though_the_others_complain_first(run):
    script = """
if rank == "1":
    ready(); os.kill(os.getpid(), signal.SIGKILL)
while not os.path.exists("ready_1_0_2"):
    time.sleep(0.01)
fail("RuntimeError: Connection closed by peer [127.0.0.1]:1")
"""
    failed = run(script)
    assert failed.exit_code == 137
    assert failed.message == "rank 1: killed by SIGKILL"
    assert "memory" in failed.hint


def test_a_rank_that_hangs_is_named_and_shows_where(run):
    script = """
import faulthandler
faulthandler.enable()
def deep_in_a_loop():
    while True:
        time.sleep(0.1)
if rank == "1":
    deep_in_a_loop()
fail("RuntimeError: Timed out waiting 1000ms for recv operation to complete")
"""
    failed = run(script)
    assert failed.exit_code == 1
    assert failed.message.startswith("rank 1 did not answer; rank 0: RuntimeError: Timed out")
    log = Path(failed.hint.rpartition(" ")[2])
    assert "deep_in_a_loop" in log.read_text()


def test_nothing_is_left_running(run):
    failed = run("ready()\nif rank == '1': sys.exit(9)\ntime.sleep(60); time.sleep(60)")
    assert failed.exit_code == 9
    pid = json.loads(Path("ready_0_0_2").read_text())["pid"]
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_cannot_be_started_at_all(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with pytest.raises(FileNotFoundError):
        run("")


def test_the_four_methods_are_those_torch_asks_for():
    """A torch that asks for more would refuse to make an Agent."""
    assert not getattr(Agent, "__abstractmethods__", None)


# ----------------------------------------------------------------------------------- several machines

AGENT = """\
import json, sys
from pathlib import Path
from automodel_cli.launch.agent import launch
from automodel_cli.launch.plan import plan_launch
from automodel_cli.errors import AutomodelError
flags = json.loads(sys.argv[1])
try:
    code = launch(
        plan_launch(flags, processes=1), [sys.executable, "worker.py"],
        log_folder=Path(sys.argv[2]), say=lambda line: print(line, flush=True),
    )
except AutomodelError as error:
    print("error:", error, flush=True)
    code = error.exit_code
sys.exit(code)
"""


class Machines:
    """Several agents on this machine, each as if it were one of its own."""

    def __init__(self, folder: Path, worker: str, **flags) -> None:
        (folder / "worker.py").write_text(WORKER + worker)
        (folder / "agent.py").write_text(AGENT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        quick = "last_call_timeout=1,join_timeout=60,keep_alive_interval=1,keep_alive_max_attempt=6,read_timeout=10"
        self.folder, self.agents = folder, []
        self.flags = {
            "rdzv-endpoint": f"127.0.0.1:{port}",
            "rdzv-conf": quick,
            "local-addr": "127.0.0.1",
            **flags,
        }

    def start(self, **flags) -> Any:
        """One more machine. The first one keeps the store."""
        name = f"agent_{len(self.agents)}"
        with (self.folder / f"{name}.txt").open("w") as output:
            agent = nursery.Popen(
                [
                    sys.executable,
                    str(self.folder / "agent.py"),
                    json.dumps({**self.flags, **flags}),
                    f"logs_{name}",
                ],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.agents.append(agent)
        return agent

    def said(self, number: int) -> str:
        return (self.folder / f"agent_{number}.txt").read_text()

    def wait_for(self, pattern: str, *, count: int = 1, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while len(list(self.folder.glob(pattern))) < count:
            assert time.monotonic() < deadline, f"no {pattern}: {[self.said(n) for n in range(len(self.agents))]}"
            time.sleep(0.05)

    def end(self, timeout_s: float = 120) -> list[int]:
        return [agent.wait(timeout_s) for agent in self.agents]


@pytest.fixture
def machines(tmp_path):
    made = []

    def make(worker: str, **flags) -> Machines:
        made.append(Machines(tmp_path, worker, **{key.replace("_", "-"): value for key, value in flags.items()}))
        return made[0]

    yield make
    for agent in made[0].agents:
        if agent.poll() is None:
            agent.kill()


def test_machines_meet_and_a_signal_to_one_stops_all_after_a_save(machines):
    """The other machine's workers leave by themselves (they agree); its launcher waits for them and says 75 too."""
    worker = """
ready()
while not caught and not os.path.exists("stop"):
    time.sleep(0.02)
open("stop", "w").close()  # stands for the flag that all ranks agree on
time.sleep(2 * int(rank))
saved()
"""
    both = machines(worker, nnodes="2", max_restarts="3")
    first = both.start()
    both.start()
    both.wait_for("ready_*_2", count=2)
    first.send_signal(signal.SIGUSR1)
    assert both.end() == [75, 75]
    both.wait_for("saved_*_0", count=2)
    endpoint = both.flags["rdzv-endpoint"]
    for number in (0, 1):
        assert f"waiting at {endpoint} for 2 machines" in both.said(number)
    joined = sorted(line for number in (0, 1) for line in both.said(number).splitlines() if "joined" in line)
    assert joined[0] == f"joined {endpoint} as machine 1 of 2: rank 0 of 2"
    assert re.fullmatch(
        rf"joined {endpoint} as machine 2 of 2: rank 1 of 2, output in logs_agent_./attempt_0/rank_1.log",
        joined[1],
    )


def test_a_machine_joins_and_one_is_lost_and_the_run_goes_on(machines):
    """1 -> 2 -> 1 machines: the newcomer makes the others save and start again with it, a loss is started again."""
    worker = """
import ctypes
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # what a worker of ours does: it does not outlive its launcher
ready()
while not caught and not os.path.exists("done"):
    time.sleep(0.02)
    if world == 2 and rank == "0" and os.path.exists("lost"):
        fail("RuntimeError: Connection closed by peer")
if os.path.exists("done"):
    sys.exit(0)
saved()
"""
    some = machines(worker, nnodes="1:3")
    some.start()
    some.wait_for("ready_0_0_1")
    second = some.start()
    some.wait_for("ready_*_0_2", count=2)
    assert (some.folder / "saved_0_0").read_text() == "SIGTERM"
    assert "another machine joins" in some.said(0)

    (some.folder / "ready_0_0_1").unlink()
    rank_of_second = 1  # the store's machine came first
    pid = json.loads((some.folder / f"ready_{rank_of_second}_0_2").read_text())["pid"]
    second.kill()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.02)
    (some.folder / "lost").touch()
    some.wait_for("ready_0_1_1")
    (some.folder / "done").touch()
    assert some.end() == [0, -signal.SIGKILL]
    assert "all processes start again (1 of 3)" in some.said(0)


def until_it_handles(number: int, pid: int, timeout_s: float = 120) -> None:
    """Wait until a process has a handler of its own for a signal."""
    deadline = time.monotonic() + timeout_s
    while True:
        (mask,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        if int(mask, 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline, "it never listens"
        time.sleep(0.02)


def test_nobody_comes(machines):
    alone = machines("ready()", nnodes="2", rdzv_conf="join_timeout=2,read_timeout=5")
    alone.start()
    assert alone.end() == [1]
    assert "fewer than 2 machines came" in alone.said(0)


def test_a_signal_before_the_machines_have_met(machines):
    alone = machines("ready()", nnodes="2")
    agent = alone.start()
    until_it_handles(signal.SIGTERM, agent.pid)
    agent.send_signal(signal.SIGTERM)
    assert alone.end() == [143]
    assert not list(alone.folder.glob("ready_*"))
