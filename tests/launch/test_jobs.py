"""Jobs: how many at once, how each ended, what a signal does."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import pytest

from automodel_cli.errors import AutomodelError
from automodel_cli.launch.jobs import Job, Jobs, run_here

WAITS = "import sys, signal, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True)\n"


def job(folder, name, code, slot=0):
    environment = {"SLOT": str(slot)}
    return Job(name, [sys.executable, "-S", "-c", code], folder / f"{name}.log", environment)


def makers(folder, codes):
    return [partial(job, folder, name, code) for name, code in codes.items()]


def test_failures_have_their_own_words_and_the_others_go_on(tmp_path):
    codes = {
        "good": "print('done')",
        "bad": "print('error: no room'); raise SystemExit(1)",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "last": "",
    }
    ends = {end.job.name: end for end in Jobs().run(makers(tmp_path, codes))}
    assert list(ends) == list(codes)
    assert {name for name, end in ends.items() if end.failed} == {"bad", "killed"}
    assert ends["bad"].message == "no room" and ends["killed"].message == "killed by SIGKILL"
    assert (tmp_path / "good.log").read_text().splitlines()[1:] == ["done"]


def test_words_of_an_earlier_attempt_are_not_those_of_the_last(tmp_path):
    """Both are in one log, which is appended to."""
    for code, message in (
        ("print('error: no room'); raise SystemExit(1)", "no room"),
        ("raise SystemExit(3)", "exit code 3"),
    ):
        (end,) = Jobs().run(makers(tmp_path, {"a": code}))
        assert end.message == message
    (end,) = Jobs().run(
        makers(tmp_path, {"a": "import os; print('error: small', flush=True); os.kill(os.getpid(), 9)"})
    )
    assert end.message == "killed by SIGKILL"


def test_as_many_at_once_as_there_are_slots(tmp_path):
    waits = (
        "import os, pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / os.environ['SLOT']).touch()\n"
        "while not ((here / '0').exists() and (here / '1').exists()): time.sleep(0.01)\n"
    )
    seen = []
    jobs = Jobs(at_once=2)
    ends = list(jobs.run(makers(tmp_path, dict.fromkeys("abc", waits)), meanwhile=lambda now: seen.append(len(now))))
    assert len(ends) == 3 and max(seen) == 2 and not any(end.failed for end in ends)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_starts_none(tmp_path, number):
    sent = []

    def stop(running):
        if not sent and (tmp_path / "a.log").read_text().endswith("up\n"):
            sent.append(os.kill(os.getpid(), number))

    jobs = Jobs(stop_timeout_s=60)
    before = signal.getsignal(number)
    (end,) = jobs.run(makers(tmp_path, dict.fromkeys("ab", WAITS + "time.sleep(60)")), meanwhile=stop)
    assert end.was_stopped and not end.failed and jobs.stopped == number
    assert signal.getsignal(number) is before and not (tmp_path / "b.log").exists()


def test_who_does_not_leave_in_time_is_killed(tmp_path):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )

    def stop(running):
        if jobs.stopped is None and (tmp_path / "a.log").read_text().endswith("up\n"):
            os.kill(os.getpid(), signal.SIGTERM)

    jobs = Jobs(stop_timeout_s=0.05)
    (end,) = jobs.run(makers(tmp_path, {"a": stubborn}), meanwhile=stop)
    assert end.code == -signal.SIGKILL and end.was_stopped


def test_an_error_of_the_caller_leaves_no_process(tmp_path):
    pids = []

    def fail(running):
        if (tmp_path / "a.log").read_text().endswith("up\n"):
            pids.extend(one.process.pid for one in jobs._running)
            raise RuntimeError("the caller's")

    jobs = Jobs(stop_timeout_s=60)
    with pytest.raises(RuntimeError, match="the caller's"):
        list(jobs.run(makers(tmp_path, {"a": WAITS + "time.sleep(60)"}), meanwhile=fail))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_command_of_our_own_where_this_process_prints(capfd):
    run_here("version", ["--version"])
    assert capfd.readouterr().out.startswith("automodel ")
    with pytest.raises(AutomodelError, match="nonsense failed: exit code 2"):
        run_here("nonsense", ["nonsense"])
