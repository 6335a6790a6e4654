"""Time until ``automodel --help`` and a configuration error appear, against ``import torch``.

Whole processes, wall time and CPU time, medians of interleaved runs. Targets: help under 0.3 s, a configuration error
under 0.5 s. Run: ``python benchmarks/startup.py [RUNS]``.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layers: 12}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: data.bin, seq_len: 1024}
step_scheduler: {max_stepz: 10}
optimizer: {_target_: torch.optim.AdamW, lr: 3e-4}
"""
REFERENCE = "import torch"
TARGETS_S = {"automodel --help": 0.3, "configuration error": 0.5}


def measure(command: list[str], folder: str, code: int) -> tuple[float, float]:
    """Wall and CPU seconds of one whole process that has to end with ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    found = subprocess.run(command, cwd=folder, capture_output=True, env={**os.environ, "COLUMNS": "80"})
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == code, found.stderr.decode()
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(runs: int) -> None:
    """Print the medians and their ratio to the reference."""
    program = [str(Path(sys.executable).with_name("automodel"))]
    commands = {
        "automodel --help": ([*program, "--help"], 0),
        "configuration error": ([*program, "pretrain", "llm", "-c", "cfg.yaml"], 2),
        REFERENCE: ([sys.executable, "-c", "import torch"], 0),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cfg.yaml").write_text(CONFIG)
        for _ in range(runs + 1):
            for name, (command, code) in commands.items():
                times[name].append(measure(command, folder, code))
    medians = {
        name: [statistics.median(column) for column in zip(*found[1:], strict=True)]  # the first run warms caches
        for name, found in times.items()
    }
    reference_cpu_s = medians[REFERENCE][1]
    print(f"medians of {runs} runs")
    for name, (wall_s, cpu_s) in medians.items():
        target = f"  target {TARGETS_S[name]} s" if name in TARGETS_S else ""
        ratio = f"  {cpu_s / reference_cpu_s:5.2f} of {REFERENCE!r}"
        print(f"{name:<22} wall {wall_s:6.3f} s  cpu {cpu_s:6.3f} s{ratio}{target}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
