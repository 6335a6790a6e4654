"""What trackers cost training: the call that logs, and the length of steps while a tracker works.

    python benchmarks/trackers.py [--steps 500] [--step-ms 20] [TOOL ...]

A step computes for so long with the interpreter held half of the time, and without it the other half, as a training
loop does, and then logs a record of fifteen numbers to ``metrics.jsonl`` and to the tool. Steps are compared with
those of a run without a tracker: their median, and their mean, in which the seconds count that a tool takes to start.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from automodel_cli.assembly.trackers import TITLES, open_trackers
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.metrics.log import MetricsLog

_CONFIG = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
wandb: {mode: offline, enable: false}
"""


def compute(seconds: float) -> None:
    """Hold the interpreter for half of ``seconds``, in turns with waiting without it."""
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        busy = now + seconds / 20
        while time.perf_counter() < busy:
            pass
        time.sleep(max(0.0, min(seconds / 20, end - time.perf_counter())))


def measure(tool: str | None, steps: int, step_s: float) -> tuple[float, float, float, float, list[str]]:
    """Median and 99th percentile of a call in microseconds, median and mean step in milliseconds, what was said."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cfg.yaml"
        config.write_text(_CONFIG)
        cfg = load_config(PretrainConfig, config, [] if tool is None else [f"--{tool}.enable", "true"])
        said: list[str] = []
        run_folder = Path(folder) / "run"
        log = MetricsLog(run_folder, remote=open_trackers(cfg, run_folder, step=0, say=said.append))
        calls, lengths = [], []
        for step in range(1, steps + 1):
            began = time.perf_counter()
            compute(step_s)
            record = {"step": step, **{f"number_{number}": step / number for number in range(1, 16)}}
            start = time.perf_counter()
            log.train(record)
            calls.append(time.perf_counter() - start)
            lengths.append(time.perf_counter() - began)
        log.close()
    ranked = statistics.quantiles(calls, n=100)
    return ranked[49] * 1e6, ranked[98] * 1e6, statistics.median(lengths) * 1e3, statistics.mean(lengths) * 1e3, said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tools", nargs="*", default=list(TITLES))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=20)
    options = parser.parse_args()
    print("tracker       call median, us   99th, us   step median, ms   mean, ms")
    for tool in (None, *options.tools):
        median, late, length, mean, said = measure(tool, options.steps, options.step_ms / 1e3)
        print(
            f"{tool or 'none':<12} {median:>16.1f} {late:>10.1f} {length:>17.3f} {mean:>10.3f}  {' '.join(said)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
