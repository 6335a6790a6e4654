"""30 machines lost at random moments with all their files: each run goes on from its mirror to the same weights."""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from tests import nursery
from tests.conftest import TinyTraining
from tests.object_server import Faults, ObjectServer

pytestmark = pytest.mark.torture
LOSSES, LAST = 30, 40
SECTIONS = {"step_scheduler": {"max_steps": LAST, "ckpt_every_steps": 3, "val_every_steps": None}}


def test_random_losses(
    tiny_training: TinyTraining, tmp_path_factory, tiny_tokens: Path, object_server: ObjectServer
) -> None:
    whole = TinyTraining(tmp_path_factory.mktemp("whole"), tiny_tokens)
    assert whole.train(**SECTIONS).returncode == 0
    draw, lost, finished = random.Random(0), 0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    while lost < LOSSES:
        url = object_server.bucket("runs")
        object_server.faults = Faults(errors=0.05, cuts=0.05, lost=0.05, slow=0.005, most=1000, seed=finished)
        mirror = {"mirror": f"{url}/run", "keep_last": 2, "is_async": bool(finished % 2)}
        config = tiny_training.config(checkpoint=mirror, **SECTIONS)
        command = [sys.executable, "-m", "automodel_cli", "pretrain", "llm", "-c", str(config)]
        while True:
            shutil.rmtree(tiny_training.run, ignore_errors=True)
            due = _Due(draw.randint(1, 120))
            object_server.watch = due.count
            with (tiny_training.folder / "output").open("w") as output:
                process = nursery.Popen(command, stdout=output, stderr=output, env=environment)
                while process.poll() is None and not due.wait(0.05):
                    pass
                if process.poll() is None:
                    time.sleep(draw.uniform(0, 0.3))
                if process.poll() is not None:
                    break
                process.kill()
                process.wait()
                lost += 1
        assert process.returncode == 0, (tiny_training.folder / "output").read_text()
        assert tiny_training.weights(LAST) == whole.weights(LAST)
        assert tiny_training.losses() == whole.losses()
        finished += 1
    print(f"{lost} losses in {finished} runs")


class _Due:
    """When a number of requests have been made: a moment in a run, however fast the machine is."""

    def __init__(self, requests: int) -> None:
        self._left, self._event = requests, threading.Event()

    def count(self, request: str) -> None:
        self._left -= 1
        if self._left <= 0:
            self._event.set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)
