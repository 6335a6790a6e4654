"""SIGKILL in each phase of a shuffle and at random times, then the same command: ``make torture``."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.promises.shuffle_runs import (
    FAULTS,
    OPTIONS,
    VARIANTS,
    check_interrupted,
    content,
    shuffle,
    write_input,
)

pytestmark = pytest.mark.torture

# Point -> how many instants it gets; workers' deeds happen in other processes, which the random times hit.
INSTANTS = {
    "read": 3,
    "scatter": 4,
    "compare": 3,
    "sort": 3,
    "file": 4,
    "fsync": 4,
    "rename": 5,
    "manifest": 2,
    "remove": 2,
}
RANDOM_TIMES = 8


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """The input, what each variant makes of it, and how often each passes each point."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_input(folder)
    whole, counts = {}, {}
    for name, options in VARIANTS.items():
        done = shuffle(data, folder / name, *options, point="count")
        assert done.returncode == 0, done.stderr
        whole[name] = content(folder / name)
        counts[name] = json.loads(done.stderr.split("COUNTS ")[1].splitlines()[0])
    return data, whole, counts


def test_same_bytes_for_any_memory_and_workers(undisturbed: tuple[Path, dict, dict]) -> None:
    _, whole, _ = undisturbed
    assert whole["one process"] == whole["two workers"]
    assert whole["no duplicates"] == whole["no duplicates, two workers"]


def test_sigkill_at_each_phase(undisturbed: tuple[Path, dict, dict], tmp_path: Path) -> None:
    data, whole, counts = undisturbed
    identical: Counter[str] = Counter()
    names = list(VARIANTS)
    for point, wanted in INSTANTS.items():
        for k in range(wanted):
            passing = [name for name in names if counts[name][point] > 0]
            variant = passing[(k + len(identical)) % len(passing)]
            number = max(1, (k + 1) * counts[variant][point] // (wanted + 1))
            out = tmp_path / f"{point}{k}"
            killed = shuffle(data, out, *VARIANTS[variant], point=point, number=number)
            assert killed.returncode == -signal.SIGKILL, (variant, point, number, killed.stderr)
            check_interrupted(out, whole[variant])
            again = shuffle(data, out, *VARIANTS[variant])
            assert again.returncode == 0, (variant, point, number, again.stderr)
            assert content(out) == whole[variant], (variant, point, number)
            identical[point] += 1
            shutil.rmtree(out)
    wanted = sum(INSTANTS.values())
    print(f"\nSIGKILL during a shuffle, then the same command: {identical.total()} of {wanted} byte-identical")
    for point, count in identical.items():
        print(f"  {point:9s} {'#' * count} {count}")


def test_sigkill_at_random_times_and_twice(undisturbed: tuple[Path, dict, dict], tmp_path: Path) -> None:
    """Also the run after it is killed, at another time, before one is left alone."""
    data, whole, _ = undisturbed
    rng = random.Random(4)
    variant = "no duplicates, two workers"
    killed = 0
    for k in range(RANDOM_TIMES):
        out = tmp_path / str(k)
        for _ in range(2):
            words = [
                "preprocess",
                "shuffle",
                "--dataset",
                str(data),
                "-o",
                str(out),
                *OPTIONS,
                *VARIANTS[variant],
            ]
            process = subprocess.Popen(
                [sys.executable, str(FAULTS), "none", "0", *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(timeout=rng.uniform(0.3, 2.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
            if out.exists():
                check_interrupted(out, whole[variant])
        again = shuffle(data, out, *VARIANTS[variant])
        assert again.returncode == 0, again.stderr
        assert content(out) == whole[variant]
    print(
        f"\nSIGKILL at random times, twice in a row: {RANDOM_TIMES} of {RANDOM_TIMES} byte-identical ({killed} kills)"
    )
