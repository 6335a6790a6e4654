"""The launcher with real training: the same numbers in every form, stopped and resumed, killed and started again.

One undisturbed run on two processes is what all others must equal. Several losses in a row: tests/torture.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.conftest import TinyTraining
from tests.promises.launch_jobs import (
    NO_DROPOUT,
    Jobs,
    meeting_place,
    wait_until_one_keeps_the_store,
    worker,
)

SECTIONS = {
    "step_scheduler": {"max_steps": 20, "ckpt_every_steps": 5, "val_every_steps": None},
    "precision": "fp32",
}


@pytest.fixture
def jobs(tmp_path):
    with Jobs(tmp_path) as jobs:
        yield jobs


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_tokens):
    """The undisturbed run, started by stock torchrun."""
    run = TinyTraining(tmp_path_factory.mktemp("two_ranks"), tiny_tokens)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "automodel_cli")
    with Jobs(run.folder) as jobs:
        config = run.config(**SECTIONS)
        job = jobs("pretrain", "llm", "-c", config, NO_DROPOUT, program=(sys.executable, *torchrun))
        assert job.end() == 0, job.said()
    assert job.said().count("pretrain llm\n") == 1, "only rank 0 speaks"
    return run


def test_stopped_and_resumed_then_killed_and_started_again_equals_undisturbed(tiny_training, two_ranks, jobs):
    """SIGUSR1 to the launcher: 75. The same command again, and SIGKILL of one worker after a checkpoint."""
    command = ["--nproc-per-node", 2, "automodel", "pretrain", "llm", "-c", tiny_training.config(**SECTIONS)]
    first = jobs(*command, NO_DROPOUT)
    first.wait_for("step 3/")
    first.process.send_signal(signal.SIGUSR1)
    assert first.end() == 75, first.said()
    assert "(SIGUSR1 received)" in first.said()

    again = jobs(*command, NO_DROPOUT, "--max-restarts=1")
    again.wait_for("step_00000010 in")
    os.kill(worker(again.process.pid, rank=1), signal.SIGKILL)
    assert again.end() == 0, again.said()
    assert "rank 1: killed by SIGKILL; all processes start again (1 of 1)" in again.said()
    assert "Traceback" not in again.said()
    assert tiny_training.losses() == two_ranks.losses()


def test_a_machine_is_lost_and_the_run_goes_on_with_the_other(tiny_training, two_ranks, jobs):
    """Two launchers with ``--nnodes 1:2``, one of them killed: the other resumes on one process."""
    config = tiny_training.config(**SECTIONS)
    flags = meeting_place()
    stays = jobs(config, NO_DROPOUT, "--nnodes=1:2", *flags)
    wait_until_one_keeps_the_store(flags)
    lost = jobs(config, NO_DROPOUT, "--nnodes=1:2", *flags)
    stays.wait_for("step_00000005 in")
    lost.process.kill()
    assert stays.end() == 0, stays.said()
    assert "all processes start again (1 of 3)" in stays.said()
    assert tiny_training.losses() == pytest.approx(two_ranks.losses(), abs=1e-5)
