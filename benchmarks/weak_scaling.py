"""Weak scaling on CPU: two processes on twice as many rows per update should take as long as one process.

    python benchmarks/weak_scaling.py [--rounds 3] [--steps 12] [--threads 1] [--strategies fsdp2 ddp]

Each process trains the same GPT on 8 rows of 256 tokens per update, with ``--threads`` threads. One process and two
(each strategy) are measured in turn, ``--rounds`` times; printed are tokens per second of all processes, updates 3 to
the last, and the efficiency: half the tokens per second of two over those of one. Cores that are shared with anything
else make the figure worse, so compare with ``two apart``: two processes that do not know of each other, started
together, which is the best the machine can do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, SEQ_LEN, VOCAB_SIZE = 8, 256, 8192
SHAPE = {"vocab_size": VOCAB_SIZE, "n_positions": SEQ_LEN, "n_embd": 256, "n_layer": 4, "n_head": 4}
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strategies", nargs="+", default=["fsdp2", "ddp"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "train.bin")
        write_tokens(data, (asked.steps + 1) * 2 * ROWS * SEQ_LEN + 1)
        measured: dict[str, list[float]] = {}
        for _ in range(asked.rounds):
            for name, speed in one_round(data, asked).items():
                measured.setdefault(name, []).append(speed)
    report(measured)


def one_round(data: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of all processes together, by what was started."""
    alone = {"steps": asked.steps, "rows": ROWS, "strategy": "fsdp2"}
    found = {"one": sum(run_workers(data, 1, alone, asked.threads))}
    found["two apart"] = sum(run_workers(data, 2, alone, asked.threads, apart=True))
    for strategy in asked.strategies:
        both = {"steps": asked.steps, "rows": 2 * ROWS, "strategy": strategy}
        found[f"two, {strategy}"] = run_workers(data, 2, both, asked.threads)[0]
    return found


def run_workers(data: Path, number: int, job: dict[str, Any], threads: int, *, apart: bool = False) -> list[float]:
    """Tokens per second that each process saw."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = []
    for rank in range(number):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "127.0.0.1"}
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_PORT": store.port}
        if number > 1 and not apart:
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", **{k: str(v) for k, v in place.items()}}
        command = [sys.executable, __file__, "--worker", str(data), json.dumps(job)]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("a worker failed; its error is above")
    return [float(output.strip().splitlines()[-1]) for output in outputs]


def worker(data: str, job: dict[str, Any]) -> None:
    """Train as one of the processes and print the tokens per second of all, after the warm-up."""
    from automodel_cli.config.load import load_config
    from automodel_cli.config.schema.pretrain import PretrainConfig
    from automodel_cli.metrics.log import MetricsLog
    from automodel_cli.recipes.pretrain import PretrainRecipe

    overrides = [
        "model._target_=automodel_cli.models.gpt2.build_gpt2_model",
        *(f"model.{key}={value}" for key, value in SHAPE.items()),
        "dataset._target_=automodel_cli.data.nanogpt_dataset.NanogptDataset",
        f"dataset.file_pattern={data}",
        f"dataset.seq_len={SEQ_LEN}",
        f"step_scheduler.global_batch_size={job['rows']}",
        f"step_scheduler.local_batch_size={ROWS}",
        f"step_scheduler.max_steps={job['steps']}",
        "step_scheduler.val_every_steps=null",
        "checkpoint.enabled=false",
        "compile=false",
        f"distributed.strategy={job['strategy']}",
    ]
    recipe = PretrainRecipe(load_config(PretrainConfig, None, overrides, {}))
    recipe.setup()
    times: list[float] = []
    log = MetricsLog.train
    MetricsLog.train = lambda self, record: (times.append(time.perf_counter()), log(self, record))  # type: ignore[method-assign, assignment, func-returns-value]
    recipe.run_train_validation_loop()
    updates = job["steps"] - WARM_UP
    print(updates * job["rows"] * SEQ_LEN / (times[-1] - times[WARM_UP - 1]))


def write_tokens(path: Path, tokens: int) -> None:
    """Random tokens: speed does not depend on them."""
    import numpy as np

    from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter

    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write(np.random.default_rng(0).integers(0, VOCAB_SIZE, tokens).astype("<u2"), np.arange(0, tokens, 1000))
    writer.close()


def report(measured: dict[str, list[float]]) -> None:
    """A line for each, with its efficiency: the median of the ratios of each round."""
    for name, speeds in measured.items():
        ratios = [speed / (2 * one) for speed, one in zip(speeds, measured["one"], strict=True)]
        efficiency = "" if name == "one" else f"   efficiency {statistics.median(ratios):.2f}"
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"{name:12} {statistics.median(speeds):9,.0f} tokens/s ({spread}){efficiency}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
