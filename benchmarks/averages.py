"""What an average of the weights is worth against the last weights, and what it costs a step.

    python benchmarks/averages.py TEXT --runs FOLDER [--seeds 3] [--steps 600]

Bytes of TEXT, a GPT-2 of three layers of width 96, updates of 8 rows of 128 bytes, AdamW at 0.003 after a warm-up of 20
updates, fp32, one thread. For each seed a run at a constant rate, and one with WSD whose last fifth decays to zero.
Beside each run all the averages are kept, by what ``ema:`` keeps them by, and after the last update each is scored on
the same held-out bytes: differences between columns are differences of the weights alone. *5 checkpoints* is what
``automodel average RUN --last 5`` makes of checkpoints that are 20 updates apart; a test compares the two.

The cost is paired: of an update of the weights with and without that of the average, one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from automodel_cli.assembly import training
from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.evaluation.likelihood import evaluate
from automodel_cli.recipes.pretraining.build import build_run
from automodel_cli.recipes.pretraining.loop import one_update, train
from automodel_cli.recipes.pretraining.progress import Progress
from automodel_cli.recipes.pretraining.run import Run
from automodel_cli.train.averaging import AverageRule, WeightAverage

ROWS, TOKENS, WARMUP, RATE = 8, 128, 20, 0.003
LOSS_BATCHES = 64  # of ROWS rows, held out
SCHEDULES = ("constant", "WSD")


class Several:
    """Many averages where a run keeps one; it neither validates nor saves them."""

    count, tensors = 0, dict[str, torch.Tensor]()

    def __init__(self, averages: dict[str, WeightAverage]) -> None:
        self.averages = averages

    def update(self, step: int, skipped: torch.Tensor) -> None:
        for one in self.averages.values():
            one.update(step, skipped)


def rules(steps: int) -> dict[str, AverageRule]:
    """The columns of the table."""
    tails = {f"tail {n}": AverageRule(None, first=steps - n + 1) for n in (50, 100, 200)}
    decays = {f"decay {decay:g}": AverageRule(decay) for decay in (0.95, 0.98, 0.99)}
    return {**tails, **decays, "5 checkpoints": AverageRule(None, first=steps - 99, every=20)}


def prepare(text: Path, folder: Path) -> Path:
    """Token files of the text."""
    data = folder / "data"
    if not (data / "manifest.json").exists():
        words = ("--tokenizer", "byte", "--val-tokens", "100k", "--seed", "1", "--output-dir", str(data))
        command = [sys.executable, "-m", "automodel_cli", "preprocess", "nanogpt", "--dataset", str(text), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return data


def config_of(data: Path, schedule: str, seed: int, steps: int) -> dict[str, Any]:
    dataset = {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "seq_len": TOKENS}
    shape = {"vocab_size": 257, "n_positions": TOKENS, "n_embd": 96, "n_layer": 3, "n_head": 3}
    rate = {"lr_warmup_steps": WARMUP, "init_lr": 0.0, "min_lr": 0.0}
    decay = {"wsd_decay_steps": steps // 5, "lr_wsd_decay_style": "linear"}
    style = {"WSD": {"lr_decay_style": "WSD", **decay}, "constant": {"lr_decay_style": "constant"}}
    return {
        "seed": seed,
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", **shape},
        "dataset": {**dataset, "file_pattern": str(data / "dataset.bin"), "shuffle_files": True},
        "validation_dataset": {**dataset, "file_pattern": str(data / "val.bin")},
        "precision": "fp32",
        "compile": False,
        "loss_fn": {"_target_": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": RATE, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "lr_scheduler": {**rate, **style[schedule]},
        "step_scheduler": {
            "global_batch_size": ROWS,
            "local_batch_size": ROWS,
            "max_steps": steps,
            "val_every_steps": None,
            "limit_val_batches": LOSS_BATCHES,
            "log_every_steps": steps,
            "preemption_signal": None,
        },
        "checkpoint": {"enabled": False},
    }


def built(folder: Path, config: dict[str, Any]) -> Run:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    cfg = load_config(PretrainConfig, file, [])
    return build_run(cfg, world_assembly.join(cfg), Reporter())


def losses_of(run: Run, steps: int) -> dict[str, float]:
    """Held-out loss of the last weights, and of each average."""
    averages = {name: training.build_average(run.model, rule) for name, rule in rules(steps).items()}
    train(replace(run, average=Several(averages)))  # type: ignore[arg-type]
    ((_, held_out),) = run.val_sets.values()
    found = {"last": evaluate(run.model, held_out, head_loss=run.head_loss).loss}
    for name, average in averages.items():
        assert average is not None
        with average.swapped_in():
            found[name] = evaluate(run.model, held_out, head_loss=run.head_loss).loss
    return found


def cost_of(run: Run, pairs: int) -> tuple[float, float]:
    """Milliseconds of an update with the average, and its ratio to the one without: medians of pairs."""
    average = training.build_average(run.model, AverageRule(0.999))
    assert average is not None
    kept = replace(run, average=average)
    times: dict[bool, list[float]] = {True: [], False: []}
    batches = iter(run.loader)
    with_it, without = Progress.begin(kept), Progress.begin(run)
    for number in range(pairs + 1):
        for is_kept in (True, False) if number % 2 else (False, True):
            batch = next(batches)
            started = time.perf_counter()
            one_update(with_it if is_kept else without, batch)
            times[is_kept].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times[True][1:], times[False][1:], strict=True)]
    return 1000 * statistics.median(times[True][1:]), statistics.median(ratios)


def update_ms(run: Run, times: int = 20) -> float:
    """Milliseconds of the average's own update."""
    average = training.build_average(run.model, AverageRule(0.999))
    assert average is not None
    found = []
    for step in range(1, times + 1):
        started = time.perf_counter()
        average.update(step, torch.tensor(False))
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=60, help="of updates that are timed")
    arguments = parser.parse_args()
    folder, steps = arguments.runs, arguments.steps
    folder.mkdir(parents=True, exist_ok=True)
    data = prepare(arguments.text, folder)
    torch.set_num_threads(1)
    run = built(folder, config_of(data, "constant", 0, steps))
    step_ms, ratio = cost_of(run, arguments.pairs)
    count = sum(one.numel() for one in run.model.parameters())
    print(
        f"{count:,} parameters, {step_ms:.1f} ms an update of {ROWS * TOKENS:,} tokens; with the average {ratio:.3f} "
        f"times that (median of {arguments.pairs} pairs), the average itself {update_ms(run):.2f} ms",
        flush=True,
    )
    columns = ["last", *rules(steps)]
    print(f"{'schedule':10s} {'seed':>4s} " + " ".join(f"{name:>13s}" for name in columns))
    for schedule in SCHEDULES:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(losses_of(built(folder, config_of(data, schedule, seed, steps)), steps))
            print(f"{schedule:10s} {seed:4d} " + " ".join(f"{rows[-1][name]:13.4f}" for name in columns), flush=True)
        gains = {name: [row[name] - row["last"] for row in rows] for name in columns[1:]}
        words = (f"{statistics.fmean(one):+.4f}" for one in gains.values())
        print(f"{schedule:10s} {'mean':>4s} {'':13s} " + " ".join(f"{word:>13s}" for word in words), flush=True)


if __name__ == "__main__":
    main()
