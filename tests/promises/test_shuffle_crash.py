"""A shuffle killed or out of disk: nothing looks complete, and the same command ends with the same bytes.

A few fixed points; ``make torture`` has more.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
from tests import nursery
from tests.promises.shuffle_runs import (
    FAULTS,
    OPTIONS,
    VARIANTS,
    check_interrupted,
    content,
    shuffle,
    write_input,
)


@pytest.mark.parametrize(
    ("point", "number", "variant"),
    [
        ("scatter", 40, "one process"),
        ("file", 9, "two workers"),
        ("rename", 5, "no duplicates"),
    ],
)
def test_sigkill_then_the_same_command(tmp_path: Path, point: str, number: int, variant: str) -> None:
    data = write_input(tmp_path)
    options = VARIANTS[variant]
    whole = shuffle(data, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    killed = shuffle(data, tmp_path / "out", *options, point=point, number=number)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    check_interrupted(tmp_path / "out", content(tmp_path / "whole"))
    again = shuffle(data, tmp_path / "out", *options, "--memory", "1M", "--num-workers", "1")
    assert again.returncode == 0, again.stderr
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: once it is met by a bucket, once by an output file."""
    data = write_input(tmp_path)
    for limit, memory in ((4000, "1M"), (8000, "9000")):
        words = ["preprocess", "shuffle", "--dataset", str(data), "-o", str(tmp_path / "out"), *OPTIONS]
        command = [sys.executable, str(FAULTS), "none", "0", *words, "--memory", memory, "--num-workers", "1"]
        done = nursery.run(
            command,
            capture_output=True,
            limits={resource.RLIMIT_FSIZE: limit},
        )
        assert done.returncode == 1, done.stdout
        assert "no room left" in done.stderr and "Traceback" not in done.stderr
        assert list(content(tmp_path / "out")) == [".lock"] and not (tmp_path / "out/.shuffle").exists()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    words = ["preprocess", "shuffle", "--dataset", str(data), "-o", str(tmp_path / "out"), *OPTIONS]
    command = [sys.executable, str(FAULTS), "read", "9", *words, "--num-workers", "2"]
    environment = {**os.environ, "AUTOMODEL_TEST_MARKER": marker}
    done = nursery.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    deadline_s = time.monotonic() + 10
    while _processes_with(marker) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert _processes_with(marker) == []


def _processes_with(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
