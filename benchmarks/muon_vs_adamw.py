"""How many updates ``muon_adamw`` needs for the validation loss of a tuned AdamW, as a share of AdamW's.

    python benchmarks/muon_vs_adamw.py TEXT --runs FOLDER [--steps 500] [--seeds 3]

Bytes of TEXT (any source that ``automodel preprocess nanogpt`` reads), a GPT-2 of 3 layers of 128, 2,048 tokens an
update, every run with a warm-up of 5% and a linear decay to zero over its own length.

1. AdamW is tuned at ``--steps`` updates: four learning rates x two decays, further rates while the best is at an edge,
   and then the rates between the best and its neighbors.
2. Muon is tuned at 0.6 of that, with fewer trials: three learning rates x two of its AdamW's.
3. Other seeds than the one that was tuned on: AdamW's loss, the lowest of the best rate and the two below it, because
   the best rate of one seed can be too high for another; and Muon's at several lengths, with one setting. Where Muon's
   loss over the logarithm of its length crosses AdamW's of the same seed (same data order, same initial values) is the
   result; the interval is Student's over seeds.

A run is a process of its own, ``automodel pretrain llm``, in a folder named by its settings; finished ones are not
repeated, so that the whole can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

RATES, DECAYS = (1.5e-3, 3e-3, 6e-3, 1.2e-2), (0.0, 0.1)
MUON_RATES = (0.01, 0.02, 0.04)
TUNED_AT, LENGTHS = 0.6, (0.3, 0.4, 0.55)
TUNING_SEED = 1
STUDENT_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # by number of seeds


def prepared(text: Path, folder: Path) -> Path:
    """The token files of the text, made once."""
    if not (folder / "manifest.json").exists():
        flags = ("--tokenizer", "byte", "--val-tokens", "500k", "--seed", "1")
        automodel("preprocess", "nanogpt", "--dataset", str(text), *flags, "--output-dir", str(folder))
    return folder


def automodel(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "automodel_cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def config_of(data: Path, optimizer: dict[str, Any], steps: int, seed: int, run: Path) -> dict[str, Any]:
    dataset = {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "seq_len": 128}
    sizes = {"vocab_size": 257, "n_positions": 128, "n_embd": 128, "n_layer": 3, "n_head": 4}
    return {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", **sizes},
        "dataset": {**dataset, "file_pattern": str(data / "dataset.bin"), "shuffle_files": True},
        "validation_dataset": {**dataset, "file_pattern": str(data / "val.bin")},
        "step_scheduler": {
            "global_batch_size": 16,
            "local_batch_size": 16,
            "max_steps": steps,
            "val_every_steps": steps,
            "val_on_start": False,
            "limit_val_batches": 60,
            "ckpt_every_steps": steps,
        },
        "rng": {"seed": seed},
        "precision": "bf16",
        "compile": {"enabled": False},
        "optimizer": optimizer,
        "lr_scheduler": {
            "lr_decay_style": "linear",
            "lr_warmup_steps": steps // 20,
            "init_lr": 0.0,
            "min_lr": 0.0,
        },
        "checkpoint": {"checkpoint_dir": str(run), "save_consolidated": False},
    }


def adamw(rate: float, decay: float) -> dict[str, Any]:
    return {"_target_": "torch.optim.AdamW", "lr": rate, "betas": [0.9, 0.95], "weight_decay": decay}


def muon(rate: float, scalar_rate: float, decay: float) -> dict[str, Any]:
    momentum = {"momentum": 0.95, "momentum_start": 0.85, "momentum_warmup_steps": 100}
    return {"_target_": "muon_adamw", "lr": rate, "scalar_lr": scalar_rate, "weight_decay": decay, **momentum}


class Runs:
    """Runs of one folder: the folder is the record of what is done."""

    def __init__(self, text: Path, folder: Path) -> None:
        self.folder = folder
        self.data = prepared(text, folder / "data")

    def loss(self, optimizer: dict[str, Any], steps: int, seed: int) -> float:
        """Validation loss after the last update of a run, which is made if it is not there."""
        settings = [f"{optimizer[key]:g}" for key in ("lr", "scalar_lr", "weight_decay") if key in optimizer]
        run = self.folder / "-".join((optimizer["_target_"].split(".")[-1], *settings, f"{steps}", f"seed{seed}"))
        if (found := final_loss(run, steps)) is None:
            shutil.rmtree(run, ignore_errors=True)
            file = run.parent / f"{run.name}.yaml"
            file.write_text(yaml.safe_dump(config_of(self.data, optimizer, steps, seed, run), sort_keys=False))
            automodel("pretrain", "llm", "-c", str(file))
            found = final_loss(run, steps)
        assert found is not None, f"{run} has no validation after its last update"
        print(f"  {run.name:48s} {found:.4f}", flush=True)
        return found


def final_loss(run: Path, steps: int) -> float | None:
    metrics = run / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return next((one["loss"] for one in records if one["kind"] == "val" and one["step"] == steps), None)


def best_adamw(runs: Runs, steps: int, rates: list[float]) -> tuple[float, float]:
    """(learning rate, decay) of the lowest loss; no edge of the grid is the best rate."""
    trials = [(rate, decay) for rate in rates for decay in DECAYS]
    losses = {trial: runs.loss(adamw(*trial), steps, TUNING_SEED) for trial in trials}
    best = min(losses, key=losses.__getitem__)
    beyond = {min(rates): min(rates) / 2, max(rates): max(rates) * 2}.get(best[0])
    return best if beyond is None else best_adamw(runs, steps, sorted([*rates, beyond]))


def best_muon(runs: Runs, steps: int, best: tuple[float, float]) -> tuple[float, float]:
    """(learning rate, its AdamW's) of the lowest loss."""
    trials = [(rate, scalar) for rate in MUON_RATES for scalar in (best[0] / 2, best[0])]
    return min(trials, key=lambda trial: runs.loss(muon(*trial, best[1]), steps, TUNING_SEED))


def crossing(lengths: list[int], losses: list[float], wanted: float) -> float:
    """Where straight pieces of losses over log(length) have the ``wanted`` one; outside, the nearest piece goes on."""
    pieces = list(zip(lengths, lengths[1:], losses, losses[1:], strict=False))
    inside = (piece for piece in pieces if piece[2] >= wanted >= piece[3])
    begin, end, high, low = next(inside, pieces[0] if wanted > losses[0] else pieces[-1])
    return begin * (end / begin) ** ((high - wanted) / (high - low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(STUDENT_975))
    arguments = parser.parse_args()
    steps = arguments.steps
    runs = Runs(arguments.text, arguments.runs)
    print(f"AdamW, learning rate and decay, {steps} updates")
    coarse = best_adamw(runs, steps, list(RATES))
    best = best_adamw(runs, steps, [coarse[0] * factor for factor in (0.5, 0.71, 1.0, 1.41, 2.0)])
    print(f"best: learning rate {best[0]:g}, decay {best[1]:g}")
    print(f"muon_adamw, learning rate and its AdamW's, {round(TUNED_AT * steps)} updates")
    chosen = best_muon(runs, round(TUNED_AT * steps), coarse)
    print(f"best: learning rate {chosen[0]:g}, of its AdamW {chosen[1]:g}")
    lengths, ratios = [round(share * steps) for share in LENGTHS], []
    for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + arguments.seeds):
        wanted = min(runs.loss(adamw(best[0] * factor, best[1]), steps, seed) for factor in (1.0, 0.71, 0.5))
        losses = [runs.loss(muon(*chosen, coarse[1]), length, seed) for length in lengths]
        reached = crossing(lengths, losses, wanted)
        ratios.append(reached / steps)
        print(f"seed {seed}: AdamW {wanted:.4f} after {steps}, muon_adamw after {reached:.0f}: {ratios[-1]:.3f}")
    half = STUDENT_975[len(ratios)] * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
    mean = float(np.mean(ratios))
    print(f"updates to the same loss: {mean:.3f} of AdamW's, 95% interval {mean - half:.3f} to {mean + half:.3f}")


if __name__ == "__main__":
    main()
