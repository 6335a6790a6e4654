"""Five branches from one trunk against five runs from zero: are they the same, and what do they cost?

    python benchmarks/branches.py TEXT --runs FOLDER [--steps 600] [--width 96] [--layers 3] [--cooldown 0.2]

Bytes of TEXT (a text or parquet file), a GPT of the preset modern, AdamW at 3e-3, updates of 8 rows of 128 bytes. The
trunk warms up for a twelfth of its --steps and then keeps its rate. Branches leave it at two to six sixths of its
steps, and cool down for --cooldown of their whole length. Each is trained as ``automodel branch`` does, then from its
first update on with the configuration that the branch wrote. Compared are the logged losses after the fork, the
validation losses, and the bytes of the last checkpoint: weights, optimizer, counters and position in the data.

Everything is kept in FOLDER: the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

import yaml

from automodel_cli.checkpoint import layout
from automodel_cli.metrics.read import read_metrics

ROWS, TOKENS, FORKS = 8, 128, (2, 3, 4, 5, 6)
COMPARED = ("model/", "optim/", "state.json", "loader.json")


def automodel(*words: object) -> float:
    """Run a command; its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "automodel_cli", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def trunk_config(folder: Path, given: argparse.Namespace) -> Path:
    """The trunk: warm-up, then a constant rate."""
    sizes = {"hidden_size": given.width, "num_hidden_layers": given.layers, "num_attention_heads": given.width // 32}
    data = {"_target_": "NanogptDataset", "seq_len": TOKENS}
    config = {
        "model": {
            "_target_": "automodel_cli.models.gpt.build_gpt_model",
            **sizes,
            "vocab_size": 257,
            "max_position_embeddings": TOKENS,
        },
        "dataset": {**data, "file_pattern": str(folder / "data" / "dataset.bin"), "shuffle_files": True},
        "validation_dataset": {**data, "file_pattern": str(folder / "data" / "val.bin")},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "lr_scheduler": {"lr_decay_style": "constant", "lr_warmup_steps": given.steps // 12},
        "step_scheduler": {
            "global_batch_size": ROWS,
            "local_batch_size": ROWS,
            "max_steps": given.steps,
            "ckpt_every_steps": given.steps // 6,
            "val_every_steps": max(given.steps // 24, 1),
            "limit_val_batches": 32,
            "log_every_steps": 5,
        },
        "checkpoint": {"checkpoint_dir": str(folder / "trunk"), "save_consolidated": False},
        "precision": "fp32",
        "compile": False,
    }
    path = folder / "trunk.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def differences(branch: Path, zero: Path, fork: int) -> list[str]:
    """What is not the same of a branch and its run from zero."""
    found = []
    steps = [layout.resolve(run) for run in (branch, zero)]
    names = [{path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()} for step in steps]
    for name in sorted(names[0] | names[1]):
        if name.startswith(COMPARED):
            contents = [(step / name).read_bytes() if (step / name).is_file() else b"" for step in steps]
            found += [name] if contents[0] != contents[1] else []
    logs = [read_metrics(run) for run in (branch, zero)]
    for kind, columns in (
        ("loss", [log.train for log in logs]),
        ("val_loss", [log.validation["default"] for log in logs]),
    ):
        after = [dict(zip(one["step"].tolist(), one["loss"].tolist(), strict=True)) for one in columns]
        later = {step: loss for step, loss in after[1].items() if step > fork}
        found += [kind] if after[0] != later or not later else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--cooldown", type=float, default=0.2)
    parser.add_argument("--shape", default="minus_sqrt")
    given = parser.parse_args()
    if given.steps % 12:
        parser.error(f"--steps is {given.steps}, expected a multiple of 12")
    folder = given.runs
    if not (folder / "data" / "manifest.json").is_file():
        words = ["--tokenizer", "byte", "--max-tokens", "20M", "--val-fraction", "0.02", "-o", folder / "data"]
        automodel("preprocess", "nanogpt", "--dataset", given.text, *words)
    config = trunk_config(folder, given)
    seconds = {"trunk": automodel("pretrain", "llm", "-c", config)}
    trained, from_zero, same = given.steps, 0, True
    print(f"{'fork':>6}{'length':>8}{'val loss':>10}{'from zero':>11}{'seconds':>9}{'from zero':>11}  differences")
    for sixth in FORKS:
        fork = given.steps * sixth // 6
        branch, zero = folder / f"branch_{fork}", folder / f"zero_{fork}"
        cooled = ["--cooldown", given.cooldown, "--shape", given.shape]
        seconds["branch"] = automodel("branch", f"{folder / 'trunk'}@{fork}", "--into", branch, *cooled)
        into = f"checkpoint.checkpoint_dir={zero}"
        seconds["zero"] = automodel("pretrain", "llm", "-c", branch / "config.yaml", into)
        last = layout.step_of(layout.resolve(branch).name) or 0
        trained, from_zero = trained + last - fork, from_zero + last
        losses = [read_metrics(run).validation["default"]["loss"][-1] for run in (branch, zero)]
        found = differences(branch, zero, fork)
        same = same and not found and all(map(math.isfinite, losses))
        times = f"{seconds['branch']:9.0f}{seconds['zero']:11.0f}"
        print(f"{fork:6}{last:8}{losses[0]:10.4f}{losses[1]:11.4f}{times}  {', '.join(found) or 'none'}", flush=True)
    share = trained / from_zero
    per_update = ROWS * TOKENS
    print(
        f"tokens: trunk and branches {trained * per_update:,}, from zero {from_zero * per_update:,} ({share:.1%}); "
        f"the trunk took {seconds['trunk']:.0f} s"
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
