"""A run that is killed again and again: ``log_and_die.py FOLDER KILLS SEED``.

Each child does to its log what a training does: it goes back to a checkpoint (a step that 5 divides), and logs updates
and validations from there, until SIGKILL comes at a random instant. The last one ends by itself.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, rewind


def newest_step(folder: Path) -> int:
    """The last that is on record."""
    path = folder / METRICS_NAME
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return max((record["step"] for line in lines if (record := decode_line(line)) is not None), default=0)


def train(folder: Path, steps: int) -> None:
    """From the newest checkpoint on."""
    saved = max(0, newest_step(folder) - 3) // 5 * 5
    rewind(folder, saved)
    log = MetricsLog(folder)
    for step in range(saved + 1, saved + 1 + steps):
        log.train({"step": step, "loss": 1 / step, "eta_s": None, "tokens_seen": 10 * step, "pid": os.getpid()})
        if step % 7 == 0:
            log.validation({"step": step, "name": "default", "loss": 2 / step})
        time.sleep(0.001)
    log.close()


def main() -> None:
    """Kill so many of them."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    instants = random.Random(int(sys.argv[3]))
    for _ in range(kills):
        child = os.fork()
        if not child:
            train(folder, 1_000_000)
        time.sleep(instants.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    train(folder, 10)


if __name__ == "__main__":
    main()
