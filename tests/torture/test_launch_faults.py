"""Machines that come and go: three launchers, one killed after the other, new ones joining, and the same numbers."""

from __future__ import annotations

import random
import time

import pytest
from tests.promises.launch_jobs import NO_DROPOUT, Jobs, meeting_place, wait_until_one_keeps_the_store

pytestmark = pytest.mark.torture
STEPS, LOSSES = 1000, 2
SECTIONS = {
    "step_scheduler": {
        # 12 sequences: 1, 2 and 3 ranks of 2 divide them
        "global_batch_size": 12, "local_batch_size": 2,
        "max_steps": STEPS, "ckpt_every_steps": 50, "val_every_steps": None,
    },
    "precision": "fp32",
    "checkpoint": {"keep_last": 3, "save_consolidated": False},
}  # fmt: skip


def test_three_machines_of_which_two_come_and_go(tiny_training, tmp_path, tmp_path_factory, tiny_tokens):
    from tests.conftest import TinyTraining

    whole = TinyTraining(tmp_path_factory.mktemp("whole"), tiny_tokens)
    assert whole.train(NO_DROPOUT, **SECTIONS).returncode == 0
    config, flags, choose = tiny_training.config(**SECTIONS), meeting_place(), random.Random(0)
    command = [config, NO_DROPOUT, "--nnodes=1:3", "--max-restarts=20", *flags]
    with Jobs(tmp_path) as jobs:
        stays = jobs(*command)
        wait_until_one_keeps_the_store(flags)
        others = [jobs(*command), jobs(*command)]
        for _ in range(LOSSES):
            stays.wait_for_more("another machine joins")  # one that is still starting would not be missed
            stays.wait_for_more("step_000")
            time.sleep(choose.uniform(0, 3))
            lost = others.pop(choose.randrange(2))
            lost.process.kill()
            lost.process.wait()
            others.append(jobs(*command))
        assert stays.end() == 0, stays.said()
        print(
            f"{stays.said().count('all processes start again')} losses, "
            f"{stays.said().count('another machine joins')} joins"
        )
    assert tiny_training.losses() == pytest.approx(whole.losses(), abs=1e-4)
