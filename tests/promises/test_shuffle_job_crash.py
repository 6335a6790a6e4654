"""A shuffle in stages whose process is killed again and again: every later one goes on, to the same bytes."""

import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tests import nursery
from tests.promises.shuffle_job_faults import OPTIONS
from tests.promises.shuffle_runs import check_interrupted, content, write_input

from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.recipes.preprocess import shuffle

SCRIPT = Path(__file__).with_name("shuffle_job_faults.py")
DEEDS = 250  # about so many in all


def one_process(data: Path, out: Path, deed: int) -> int:
    """Its exit status; with a ``deed`` it dies there."""
    done = nursery.run([sys.executable, str(SCRIPT), str(data), str(out), str(deed)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def kill_many_times(folder: Path, kills: int) -> int:
    """How many runs, each killed several times on its way, had the same bytes in the end."""
    data, rng = write_input(folder), random.Random(kills)
    shuffle.run(
        ShuffleConfig(dataset=str(data), output_dir=str(folder / "whole"), **OPTIONS),
        progress=lambda _: None,
        say=lambda _: None,
    )
    whole = content(folder / "whole")
    whole.pop(".lock")
    killed = identical = 0
    while killed < kills:
        out = folder / "out"
        while one_process(data, out, int(rng.expovariate(4 / DEEDS)) + 1):
            killed += 1
            check_interrupted(out, whole)
        assert content(out) == whole
        identical += 1
        shutil.rmtree(out)
    return identical


def test_processes_that_die_at_any_deed(tmp_path: Path) -> None:
    assert kill_many_times(tmp_path, 12) >= 1


@pytest.mark.torture
def test_two_hundred_kills(tmp_path: Path) -> None:
    identical = kill_many_times(tmp_path, 200)  # asserts that each folder is
    assert identical >= 1
    print(f"\n200 kills of processes at work on a shuffle in stages: {identical} of {identical} folders identical")
