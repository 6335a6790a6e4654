"""Hostile programs do no harm and pass nothing; honest ones pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.chat import confined, programs
from automodel_cli.evaluation.chat.programs import Limits, passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux alone")
QUICK = Limits(memory_bytes=256 << 20, cpu_s=1, wall_s=20.0)


@pytest.fixture(scope="module", autouse=True)
def confinable():
    try:
        programs.check_confinement()
    except ConfigError as error:
        pytest.skip(error.message)


def test_an_honest_program_passes() -> None:
    text = "from typing import List\nimport math, re, collections, hashlib, random\nprint('noise' * 9999)\n"
    assert passes(text + "assert math.gcd(12, 8) == 4 and random.random() < 1\n")
    assert programs.which_pass(["", "assert False", "é = 1", "def (:", "\udc80"]) == [True, False, True, False, False]


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import os\nfor fd in range(9):\n    try: os.write(fd, b'0' * 64)\n    except OSError: pass\nos._exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)\nassert False",
        "import signal, os\nsignal.signal(signal.SIGXCPU, lambda *_: os._exit(0))\nwhile True: pass",  # endless
        "x = bytearray(1 << 30)",
        "x = []\nwhile True: x.append('memory' * 9999)",
        "def f(): f()\nf()",
    ],
)
def test_cheats_and_hogs_do_not_pass(text) -> None:
    assert not passes(text, QUICK)


def test_a_sleeper_is_ended_by_the_clock() -> None:
    started = time.monotonic()
    assert not passes("import time\ntime.sleep(999)", Limits(wall_s=0.5))
    assert time.monotonic() - started < 60


REFUSED = {
    "fork bomb": "while True: os.fork()",
    "thread": "import threading; threading.Thread(target=print).start()",
    "program": "import subprocess; subprocess.run(['/bin/true'])",
    "exec": "os.execv('/bin/true', ['true'])",
    "socket": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socketpair()",
    "huge file": "open('huge', 'wb')",
    "file elsewhere": "open({victim!r}, 'a')",
    "truncate": "os.truncate({victim!r}, 0)",
    "delete": "os.remove({victim!r})",
    "delete a folder": "import shutil; shutil.rmtree({folder!r})",
    "rename": "os.rename({victim!r}, 'x')",
    "link": "os.symlink({victim!r}, 'x')",
    "mode": "os.chmod({victim!r}, 0o777)",
    "read": "open({victim!r}).read()",
    "list": "os.listdir({folder!r})",
    "environment of the parent": "open(f'/proc/{{os.getppid()}}/environ').read()",
    "memory of the parent": "open(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "kill": "os.kill(os.getppid(), 9)",
    "priority": "os.nice(-5)",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "memory file": "os.memfd_create('x')",
    "signals by a pipe": "import fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
}


def test_what_is_not_computing_is_refused(tmp_path) -> None:
    """Each attempt in one program: it passes only if every one of them was not permitted."""
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    attempts = [code.format(victim=str(victim), folder=str(tmp_path)) for code in REFUSED.values()]
    text = f"""
import os
done = []
for attempt in {attempts!r}:
    try:
        exec(attempt)
    except (PermissionError, RuntimeError, ValueError) as error:  # threads and setrlimit say it in their own words
        continue
    done.append(attempt)
assert not done
"""
    assert passes(text, Limits(cpu_s=3))
    assert victim.read_text() == "mine" and list(tmp_path.iterdir()) == [victim]


def test_nothing_of_ours_is_seen(monkeypatch) -> None:
    monkeypatch.setenv("AUTOMODEL_JUDGE_KEY", "hush")
    assert passes("import os\nassert set(os.environ) <= {'OPENBLAS_NUM_THREADS', 'LC_CTYPE'}, os.environ")
    assert passes("import sys, os\nassert sys.stdin.read() == ''")
    if not Path(confined.__file__).is_relative_to(sys.prefix):  # a folder that a .pth file adds to the path
        assert not passes(f"open({confined.__file__!r})")


def test_no_folder_and_no_process_is_left(monkeypatch, tmp_path) -> None:
    started = []

    class Kept(subprocess.Popen):
        def __init__(self, *args, **more) -> None:
            super().__init__(*args, **more)
            started.append(self)

    monkeypatch.setattr(programs.subprocess, "Popen", Kept)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert passes("import os\nassert len(os.getcwd()) > 1")
    assert not passes("import time\ntime.sleep(99)", Limits(wall_s=0.3))
    assert list(tmp_path.iterdir()) == [] and len(started) == 2
    for process in started:  # waited for: no process of this number is a child any more
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def test_where_the_kernel_cannot_confine_nothing_runs(monkeypatch, tmp_path) -> None:
    broken = tmp_path / "confined.py"
    source = (
        Path(confined.__file__)
        .read_text()
        .replace("_SET_SECCOMP, _FILTER = 1, 38, 22, 2", "_SET_SECCOMP, _FILTER = 1, 38, 22, 9")
    )
    broken.write_text(source)
    monkeypatch.setattr(confined, "__file__", str(broken))
    assert not passes("")
    with pytest.raises(ConfigError, match="seccomp and Landlock"):
        programs.check_confinement()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_well_formed(machine) -> None:
    """Jumps stay inside, and each path ends in a return."""
    program = confined.call_filter(machine)
    places = range(0, len(program), 8)
    for place in places:
        code, yes, no = int.from_bytes(program[place : place + 2], "little"), program[place + 2], program[place + 3]
        assert place // 8 + 1 + max(yes, no) < len(places) or code == 0x06
    assert program[-8:-6] == b"\x06\x00"
