"""Worker processes: their environment, their output, how they end, and which of several failures is the cause."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from automodel_cli.launch.workers import ProcessExit, Workers, root_cause


def end(rank: int, code: int, at: float, message: str = "", **more) -> ProcessExit:
    return ProcessExit(rank=rank, pid=0, code=code, at=at, message=message, **more)


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([end(0, 1, 2.0, "x"), end(1, 1, 1.0, "y")], 1),
        ([end(0, 0, 0.0), end(1, 75, 1.0), end(2, 75, 0.5)], 2),
        # gloo on rank 0 notices at once that rank 1 is gone; the launcher notices rank 1 itself a little later
        ([end(0, 1, 1.0, "RuntimeError: Connection closed by peer [127.0.0.1]:5"), end(1, -9, 1.1)], 1),
        ([end(0, 1, 1.0, "RuntimeError: Broken pipe"), end(1, 1, 1.1, "ValueError: no")], 1),
        ([end(0, 1, 1.0, "DistBackendError: NCCL remote process exited"), end(1, -6, 3.0)], 1),
        ([end(0, 1, 1.0, "Timed out waiting 1000ms for recv"), end(1, 2, 1.5, "wrong")], 1),
        ([end(0, -15, 1.0, by_us=True), end(1, 1, 1.5, "x")], 1),
        ([end(0, 1, 1.0, "Connection reset by peer"), end(1, 1, 1.5, "Connection reset by peer")], 0),
    ],
)
def test_the_cause_is_the_first_that_follows_from_no_other(ends, cause):
    assert root_cause(ends).rank == cause
    assert root_cause(ends[::-1]).rank == cause


def test_exit_codes_are_those_of_a_shell():
    assert [end(0, code, 0.0).exit_code for code in (0, 1, 75, -9, -11)] == [0, 1, 75, 137, 139]


SCRIPT = """\
import json, os, signal, sys, time
rank = os.environ["RANK"]
print("output of", rank, flush=True)
print("error of", rank, file=sys.stderr, flush=True)
plan = json.loads(sys.argv[1])[rank]
if plan.get("catch"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if plan.get("ignore"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(f"ready_{rank}", "w").close()
time.sleep(plan.get("sleep", 0))
if text := plan.get("error"):
    with open(os.environ["AUTOMODEL_ERROR_FILE"], "w") as file:
        file.write(text)
sys.exit(plan.get("code", 0))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start one process for each plan; all of them are gone at the end."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT)
    started = []

    def start(*plans: dict, wait: bool = True) -> Workers:
        text = json.dumps({str(rank): plan for rank, plan in enumerate(plans)})
        environments = [{"RANK": str(rank)} for rank in range(len(plans))]
        workers = Workers([sys.executable, "script.py", text], environments, tmp_path / "logs")
        started.append(workers)
        while wait and not all(Path(f"ready_{rank}").exists() for rank in range(len(plans))):
            time.sleep(0.01)
        return workers

    yield start
    for workers in started:
        workers.kill()


def test_rank_0_keeps_the_terminal_and_the_others_write_to_files(start, tmp_path, capfd):
    workers = start({}, {}, {})
    assert workers.wait(30)
    assert [end.code for end in workers.ends()] == [0, 0, 0]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("output of 0\n", "error of 0\n")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank_1.log", "rank_2.log"]
    assert (tmp_path / "logs/rank_2.log").read_text() == "output of 2\nerror of 2\n"


def test_a_failure_comes_with_its_own_words(start, tmp_path):
    said = json.dumps({"rank": 1, "time": 12.5, "message": "wrong", "hint": "mend it"})
    workers = start({}, {"code": 3, "error": f"{said}\n\nTraceback"}, {"code": 4, "error": "no JSON"})
    assert workers.wait(30)
    first, second = workers.failed()
    assert (first.code, first.at, first.message, first.hint) == (3, 12.5, "wrong", "mend it")
    assert first.traceback == tmp_path / "logs/rank_1_error.txt"
    assert (second.code, second.message, second.traceback) == (4, "", None)
    assert second.log == tmp_path / "logs/rank_2.log"
    assert abs(second.at - time.time()) < 60


def test_who_saves_is_waited_for_and_who_does_not_hear_is_killed(start):
    workers = start({"catch": True, "sleep": 60}, {"ignore": True, "sleep": 60})
    assert workers.running() == [0, 1]
    workers.stop(signal.SIGTERM, 1.0)
    assert [(end.code, end.by_us) for end in workers.ends()] == [(75, False), (-signal.SIGKILL, True)]


def test_a_hung_process_is_asked_where_it_hangs(start):
    workers = start({"sleep": 60}, {"code": 0})
    workers.kill(signal.SIGABRT)
    assert workers.ends()[0].code == -signal.SIGABRT


def test_what_a_worker_started_goes_with_it_when_it_is_killed(start, tmp_path):
    script = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); open('child', 'w').write(str(p.pid));"
    workers = Workers([sys.executable, "-c", script + "time.sleep(60)"], [{"RANK": "0"}], tmp_path / "logs")
    while not (Path("child").exists() and Path("child").read_text()):
        time.sleep(0.01)
    child = int(Path("child").read_text())
    workers.kill()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it lives on")
