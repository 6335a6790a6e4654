"""Planted bad shards and clean runs: which are found by `spikes`, and what the runs are worth in the end.

    python benchmarks/spikes.py TEXT [--clean 50] [--planted 20]

TEXT is what `automodel preprocess nanogpt --dataset` takes; its bytes are the tokens. A modern GPT of 2 layers of 32,
batches of 32 rows of 64 bytes, 126 updates, `spikes: {window: 64}`. Every run has windows of its own, drawn at random,
and a seed of its own. A planted run reads, before its update 121, a shard of two updates more: random ids, a phrase of
the text over and over, or the text in ids of another tokenizer (numbers of characters); by turns it skips and rewinds.
A run is trained by the recipe itself, with checkpoints; its loss is that of the same held-out 64 KB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.recipes.pretrain import PretrainRecipe

ROWS, SEQ_LEN, STEPS, BAD_AT, BAD_UPDATES, HELD_OUT, IDS = 32, 64, 126, 120, 2, 1 << 16, 257
UPDATE = ROWS * SEQ_LEN
DOCUMENT = 700  # tokens of a document of a bad shard
KINDS = ("noise", "repeated", "foreign")


def text_of(folder: Path, dataset: str) -> np.ndarray:
    """The bytes of the text, tokenized by the command."""
    words = ["preprocess", "nanogpt", "--dataset", dataset, "--tokenizer", "byte", "--output-dir", str(folder / "text")]
    subprocess.run([sys.executable, "-m", "automodel_cli", *words], check=True, stdout=subprocess.DEVNULL)
    file = inspect_token_file(folder / "text" / "dataset.bin")
    with TokenReader(file) as reader:
        return reader.read(0, file.num_tokens).astype(np.int64)


def write(path: Path, tokens: np.ndarray, starts: np.ndarray) -> str:
    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write(tokens.astype("<u2"), starts)
    writer.close()
    return str(path)


def bad_tokens(kind: str, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = BAD_UPDATES * UPDATE + 1
    at = int(rng.integers(len(text) - size))
    if kind == "noise":
        return rng.integers(0, 256, size)
    if kind == "repeated":
        return np.resize(text[at : at + int(rng.integers(8, 40))], size)
    characters = np.unique(text[: 1 << 20])
    return np.searchsorted(characters, text[at : at + size])


def shards(folder: Path, seed: int, text: np.ndarray, kind: str | None) -> list[str]:
    """The files of a run in reading order."""
    rng = np.random.default_rng(seed)
    first = rng.integers(HELD_OUT, len(text) - SEQ_LEN, ROWS * (STEPS + 2))
    good = text[first[:, None] + np.arange(SEQ_LEN)].ravel()
    cut = BAD_AT * UPDATE + 1
    bad = [] if kind is None else [("bad", bad_tokens(kind, text, rng))]
    parts = [("a", good[:cut]), *bad, ("b", good[cut:])]
    return [write(folder / f"{name}.bin", tokens, np.arange(0, len(tokens), DOCUMENT)) for name, tokens in parts]


def trained(folder: Path, seed: int, text: np.ndarray, kind: str | None, action: str) -> dict[str, Any]:
    """A run's validation loss and its events."""
    folder.mkdir()
    held_out = write(folder / "val.bin", text[:HELD_OUT], np.zeros(1, np.int64))
    dataset = {"_target_": "NanogptDataset", "seq_len": SEQ_LEN}
    config = {
        "seed": seed,
        "model": {"_target_": "automodel_cli.models.gpt.build_gpt_model", "hidden_size": 32, "num_hidden_layers": 2,
                  "num_attention_heads": 2, "vocab_size": IDS, "max_position_embeddings": SEQ_LEN},
        "dataset": {**dataset, "file_pattern": shards(folder, seed, text, kind)},
        "validation_dataset": {**dataset, "file_pattern": [held_out]},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.004, "betas": [0.9, 0.95]},
        "lr_scheduler": {"lr_decay_style": "cosine", "lr_warmup_steps": 20},
        "step_scheduler": {"global_batch_size": ROWS, "local_batch_size": ROWS, "max_steps": STEPS,
                           "ckpt_every_steps": 50, "val_on_start": False, "validate_on_checkpoint": False},
        "checkpoint": {"checkpoint_dir": str(folder / "run"), "save_consolidated": False},
        "compile": False,
        "spikes": {"action": action, "window": 64},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    recipe = PretrainRecipe(load_config(PretrainConfig, folder / "config.yaml"))
    recipe.setup()
    result = recipe.run_train_validation_loop()
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    events = [line for line in lines if line["kind"] == "spike"]
    return {"loss": result.val_losses["default"], "events": events, "end": recipe.loader.samples_consumed}


def found(run: dict[str, Any], action: str) -> bool:
    """Whether the whole planted shard was found, acted upon, and its files and documents were named rightly."""
    named = [window for event in run["events"] for window in event["windows"]]
    in_it = all(window["file"].endswith("bad.bin") for window in named)
    right = all(
        [one["number"] for one in window["documents"]]
        == list(range(window["first_token"] // DOCUMENT, (window["end_token"] - 1) // DOCUMENT + 1))
        for window in named
    )
    return in_it and right and len(run["events"]) == BAD_UPDATES and {e["action"] for e in run["events"]} == {action}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--clean", type=int, default=50)
    parser.add_argument("--planted", type=int, default=20)
    given, started = parser.parse_args(), time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = text_of(folder, given.text)
        clean = [trained(folder / f"clean_{seed}", seed, text, None, "note") for seed in range(given.clean)]
        alarms = [(seed, event["step"]) for seed, run in enumerate(clean) for event in run["events"]]
        losses = [run["loss"] for run in clean]
        print(f"{len(clean)} clean runs: {len(alarms)} alarms {alarms or ''}", flush=True)
        print(f"  loss {statistics.mean(losses):.4f}, standard deviation {statistics.stdev(losses):.4f}", flush=True)
        differences = []
        for number in range(given.planted):
            kind, action = KINDS[number % len(KINDS)], ("skip", "rewind")[number % 2]
            run = trained(folder / f"planted_{number}", number, text, kind, action)
            steps = [event["step"] for event in run["events"]]
            differences.append(run["loss"] - clean[number]["loss"])
            word = "found" if found(run, action) else "NOT FOUND"
            print(f"{kind:<9} {action:<7} {word:<10} steps {steps} loss {differences[-1]:+.4f} of clean", flush=True)
        sizes = f"mean {statistics.mean(differences):+.4f}, largest {max(map(abs, differences)):.4f}"
        print(f"{len(differences)} planted runs, loss against the clean run of the seed: {sizes}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
