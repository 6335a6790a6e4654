"""A rank dies or hangs, and no launcher watches (srun without --kill-on-bad-exit): the other one leaves within the time
limit, with an error that names the rank. (What our launcher makes of it: tests/launch/test_agent.py.)"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from tests import nursery

LOSE_RANK = Path(__file__).parent / "lose_rank.py"
TIMEOUT_S = 6


@pytest.mark.parametrize("how", ["die", "hang"])
def test_the_others_leave_and_name_it(tiny_training, how):
    config = tiny_training.config(
        checkpoint={"enabled": False}, dist_env={"timeout_minutes": TIMEOUT_S / 60}, precision="fp32"
    )
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = ["pretrain", "llm", "-c", str(config)]
    ranks = [
        nursery.Popen(
            [sys.executable, *front, *command],
            env=environment(rank, store.port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, front in enumerate((["-m", "automodel_cli"], [str(LOSE_RANK), how, "5"]))
    ]
    try:
        said = []
        for line in ranks[0].stdout:
            said.append(line)
            if line.startswith("step 4/"):
                lost_at = time.monotonic()
        assert ranks[0].wait(timeout=60) not in (0, 75), "".join(said)
        took = time.monotonic() - lost_at
    finally:
        for process in ranks:
            process.kill()
            process.wait()
            process.stdout.close()
    text = "".join(said)
    assert "rank 1 (last seen at step" in text.replace("\n", " "), text
    assert "after step 4" in text.replace("\n", " "), text
    assert took < TIMEOUT_S + 60, f"{took:.0f} s"  # the limit, ten seconds for others to answer, a slow machine


def environment(rank, port):
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
