"""What the recipe costs over a bare loop: same model, data, precision, loss, clipping; tokens per second, CPU.

The recipe logs every update to the console and to metrics.jsonl; the bare loop does forward, backward, clip and step
and nothing else. Both are measured in turn, ``--rounds`` times, on the same tokens; the ratio of each pair is printed.

    python benchmarks/recipe_overhead.py [--rounds 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from automodel_cli.assembly.voice import Voice
from automodel_cli.batch import Batch
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.corpus.nanogpt_bin import ShardWriter
from automodel_cli.recipes.pretrain import PretrainRecipe

VOCAB_SIZE, SEQ_LEN, ROWS = 50304, 256, 8
SHAPE = {"vocab_size": VOCAB_SIZE, "n_positions": SEQ_LEN, "n_embd": 256, "n_layer": 4, "n_head": 4}


def write_tokens(path: Path, tokens: int) -> None:
    """Random tokens: the loop does not care."""
    ids = np.random.default_rng(0).integers(0, 50257, tokens).astype("<u2")
    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write(ids, np.arange(0, tokens, 1000))
    writer.close()


def build(data: Path, run: Path, steps: int) -> PretrainRecipe:
    """The recipe, set up; its console goes to a buffer, as under a log file."""
    overrides = [
        "model._target_=automodel_cli.models.gpt2.build_gpt2_model",
        *(f"model.{key}={value}" for key, value in SHAPE.items()),
        "dataset._target_=automodel_cli.data.nanogpt_dataset.NanogptDataset",
        f"dataset.file_pattern={data}",
        f"dataset.seq_len={SEQ_LEN}",
        f"step_scheduler.global_batch_size={ROWS}",
        f"step_scheduler.local_batch_size={ROWS}",
        f"step_scheduler.max_steps={steps}",
        "step_scheduler.ckpt_every_steps=null",
        f"checkpoint.checkpoint_dir={run}",
    ]
    recipe = PretrainRecipe(load_config(PretrainConfig, None, overrides, {}), voice=Voice(say=print))
    recipe.setup()
    return recipe


def bare_loop(recipe: PretrainRecipe, steps: int) -> float:
    """Seconds for ``steps`` updates with the recipe's own model, loss and optimizer, and nothing around them."""
    model, optimizer, dtype = recipe.model, recipe.optimizer, recipe.fast_path.autocast_dtype
    tokens = recipe.dataset.seq_len + 1
    buffer = np.empty((ROWS, tokens), dtype=np.int64)
    started = time.perf_counter()
    for step in range(steps):
        recipe.dataset.fill(np.arange(step * ROWS, (step + 1) * ROWS), buffer)
        rows = torch.from_numpy(buffer)
        batch = Batch(rows[:, :-1], rows[:, 1:])
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            nll = model(batch, head_loss=recipe.head_loss)
        (nll / batch.labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        nll.item()
    return time.perf_counter() - started


def recipe_loop(recipe: PretrainRecipe) -> float:
    """Seconds of the recipe's loop, logging included."""
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.perf_counter()
        recipe.run_train_validation_loop()
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.bin"
        write_tokens(data, 2_000_000)
        for number in range(arguments.rounds + 1):
            with contextlib.redirect_stdout(io.StringIO()):
                recipe = build(data, Path(folder) / f"run{number}", arguments.steps)
                bare_loop(recipe, 3)  # warm-up
            bare_s, recipe_s = bare_loop(recipe, arguments.steps), recipe_loop(recipe)
            if number == 0:
                continue
            tokens = arguments.steps * ROWS * SEQ_LEN
            ratios.append(bare_s / recipe_s)
            print(f"round {number}: bare {tokens / bare_s:,.0f} tok/s, recipe {tokens / recipe_s:,.0f} tok/s")
    print(
        f"recipe / bare loop: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
