"""Killed, out of disk or without a worker: whole shards or none, and the same command ends with the same bytes.

About three points each; ``make torture`` has the full counts.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
from tests import nursery
from tests.promises.preprocess_runs import (
    FAULTS,
    OPTIONS,
    VARIANTS,
    check_interrupted,
    check_not_sound,
    content,
    preprocess,
    write_input,
)


@pytest.mark.parametrize(
    ("point", "number", "variant"),
    [
        ("write", 25, "two workers"),
        ("rename", 12, "raw, exact"),
        ("manifest", 9, "shuffle"),
        ("journal", 3, "one process"),
    ],
)
def test_sigkill_then_the_same_command(tmp_path: Path, point: str, number: int, variant: str) -> None:
    data = write_input(tmp_path)
    options = VARIANTS[variant]
    whole = preprocess(data, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    killed = preprocess(data, tmp_path / "out", *options, point=point, number=number)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    check_interrupted(tmp_path / "out", content(tmp_path / "whole"))
    check_not_sound(tmp_path / "out")
    again = preprocess(data, tmp_path / "out", "--num-workers", "1", "--chunk-size", "3", *options[2:])
    assert again.returncode == 0, again.stderr
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_interrupted_run_goes_on_from_whole_shards(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    killed = preprocess(data, tmp_path / "out", *VARIANTS["one process"], point="journal", number=8)
    assert killed.returncode == -signal.SIGKILL
    shards = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.bin")}
    assert len(shards) >= 3
    again = preprocess(data, tmp_path / "out", *VARIANTS["one process"])
    assert again.returncode == 0 and "continuing the interrupted run" in again.stdout
    untouched = [p for p, written in shards.items() if p.stat().st_mtime_ns == written]
    assert len(untouched) >= len(shards) - 1  # all but the one that the journal had not seen
    other = preprocess(data, tmp_path / "out", *VARIANTS["one process"], "--max-tokens", "50")
    assert other.returncode == 2 and "made in another way" in other.stderr


def test_changed_input_is_not_mixed_with_what_was_read_before(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    preprocess(data, tmp_path / "out", *VARIANTS["one process"], point="journal", number=6)
    data.write_text(data.read_text().replace("row", "Row"))
    again = preprocess(data, tmp_path / "out", *VARIANTS["one process"])
    assert again.returncode == 2 and "identity" in again.stderr and "--overwrite" in again.stderr


def test_a_full_disk_is_a_clear_error_and_finished_shards_stay(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: shards of 900 tokens pass, then a larger file does not."""
    data = write_input(tmp_path)
    out = tmp_path / "out"
    for limit, named in ((2900, "manifest.json"), (2000, "dataset.bin")):
        words = ["preprocess", "nanogpt", "--dataset", str(data), "-o", str(out), *OPTIONS]
        command = [sys.executable, str(FAULTS), "none", "0", *words, "--num-workers", "1", "--overwrite"]
        if named == "dataset.bin":
            command += ["--shard-tokens", "5000"]
        done = nursery.run(
            command,
            capture_output=True,
            limits={resource.RLIMIT_FSIZE: limit},
        )
        assert done.returncode == 1, done.stdout
        assert "no room left" in done.stderr and named in done.stderr and "Traceback" not in done.stderr
        assert not (out / "manifest.json").exists()
    whole = preprocess(data, tmp_path / "whole", *VARIANTS["one process"])
    assert whole.returncode == 0
    failed = preprocess(data, out, *VARIANTS["one process"], "--overwrite", point="none")
    assert failed.returncode == 0 and content(out) == content(tmp_path / "whole")


def test_a_dead_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    code = (
        "import os, signal, sys\n"
        "from automodel_cli.corpus.build import pool\nfrom automodel_cli.corpus.documents import source as documents\n"
        "documents.BYTES_PER_DOCUMENT = 64\n"
        "collect = pool.OrderedPool._collect\n"
        "seen = []\n"
        "def kill_one(self, ready):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 5:\n"
        "        os.kill(self._workers[0].process.pid, signal.SIGKILL)\n"
        "    return collect(self, ready)\n"
        "pool.OrderedPool._collect = kill_one\n"
        "from automodel_cli.cli.app import main\n"
        "main()\n"
    )
    words = ["preprocess", "nanogpt", "--dataset", str(data), "-o", str(tmp_path / "out"), *OPTIONS]
    command = [sys.executable, "-c", code, *words, "--num-workers", "2"]
    done = nursery.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a worker process died (killed by SIGKILL)" in done.stderr
    again = preprocess(data, tmp_path / "out", *VARIANTS["two workers"])
    assert again.returncode == 0
    preprocess(data, tmp_path / "whole", *VARIANTS["one process"])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, "AUTOMODEL_TEST_MARKER": marker}
    words = ["preprocess", "nanogpt", "--dataset", str(data), "-o", str(tmp_path / "out"), *OPTIONS]
    command = [sys.executable, str(FAULTS), "write", "10", *words, "--num-workers", "2"]
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
