"""A machine is lost with all its files: the run goes on from its mirror, as if nothing had happened.

A few fixed points; ``make torture`` has 30 at random.
"""

from __future__ import annotations

import shutil

import pytest
from tests.conftest import TinyTraining
from tests.object_server import Faults, ObjectServer

LAST = 12


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    return object_server.bucket("runs")


def _equal(run: TinyTraining, undisturbed: TinyTraining) -> None:
    assert run.weights(LAST) == undisturbed.weights(LAST)
    assert run.losses() == undisturbed.losses()


@pytest.mark.parametrize(
    ("point", "number", "is_async"),
    [("step", 7, False), ("step", 12, True), ("write", 9, False)],
)
def test_a_lost_machine_costs_no_run(
    point: str, number: int, is_async: bool, tiny_training: TinyTraining, undisturbed: TinyTraining, bucket: str
) -> None:
    settings = {"checkpoint": {"mirror": f"{bucket}/run", "is_async": is_async, "keep_last": 1}}
    killed = tiny_training.train(kill=(point, number), **settings)
    assert killed.returncode == -9, killed.stderr
    shutil.rmtree(tiny_training.run)
    done = tiny_training.train(**settings)
    assert done.returncode == 0, done.stderr
    _equal(tiny_training, undisturbed)
    shutil.rmtree(tiny_training.run)  # once more: of the finished run everything is there
    again = tiny_training.train(**settings)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout
    _equal(tiny_training, undisturbed)
    assert (tiny_training.run / f"step_{LAST:08d}" / "hf" / "config.json").is_file()


def test_a_store_with_faults_and_one_that_is_gone(
    tiny_training: TinyTraining, undisturbed: TinyTraining, bucket: str, object_server: ObjectServer
) -> None:
    settings = {"checkpoint": {"mirror": f"{bucket}/run"}}
    object_server.faults = Faults(errors=0.2, cuts=0.1, lost=0.1, most=40)
    done = tiny_training.train(**settings)
    assert done.returncode == 0 and "copied step_00000012" in done.stdout, done.stdout + done.stderr
    assert object_server.faults.count > 10
    _equal(tiny_training, undisturbed)
    shutil.rmtree(tiny_training.run)
    missing = tiny_training.train(checkpoint={"mirror": "s3://elsewhere/run"})
    assert missing.returncode == 2 and "no bucket s3://elsewhere" in missing.stderr, missing.stderr
