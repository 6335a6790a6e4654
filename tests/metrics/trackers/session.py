"""One process of a run that logs to a tracker, for ``test_sessions``: no model, the same losses whenever it is run.

Arguments: a JSON object with folder, tool, settings, begin, end, killed (seconds after the last update; null: not).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import rewind
from automodel_cli.metrics.trackers.apart import Apart
from automodel_cli.metrics.trackers.background import Background, Trackers

CANARY = "canary-hunter2"
CONFIG = {"model": {"n_layer": 2, "deep": {"x": [1, 2]}}, "comet": {"api_key": CANARY}, "tokenizer": "byte"}
NOT_A_NUMBER_AT = 5


def loss_of(step: int) -> float:
    """What a run of this seed has as its loss."""
    return math.nan if step == NOT_A_NUMBER_AT else 10 / (step + 2)


def main(folder: str, tool: str, settings: dict, begin: int, end: int, killed: float | None) -> None:
    """Log the updates after ``begin`` up to ``end``."""
    rewind(folder, begin)
    start = {"settings": settings, "run_folder": folder, "config": CONFIG, "step": begin, "every_steps": 1}
    said: list[str] = []
    log = MetricsLog(folder, remote=Trackers([Background(tool, lambda: Apart(tool, tool, start), said.append)]))
    for step in range(begin + 1, end + 1):
        by_source = {"web (a/b)": loss_of(step), "code": 1.5}
        log.train({"step": step, "loss": loss_of(step), "lr": 1e-3, "skipped": False, "loss_by_source": by_source})
        if step % 4 == 0:
            log.validation({"step": step, "name": "default", "loss": 2 * loss_of(step)})
            log.validation({"step": step, "name": "default (ema)", "loss": 3 * loss_of(step)})
            log.evaluation({"step": step, "core": 0.25, "samples": [{"prompt": "Hello ", "text": "*wor<b>ld*"}]})
    if killed is not None:
        time.sleep(killed)
        os.kill(os.getpid(), signal.SIGKILL)
    log.close()
    print("\n".join(said))


if __name__ == "__main__":
    main(**json.loads(Path(sys.argv[1]).read_text()))
