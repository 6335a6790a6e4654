"""Two commits give the same bytes: ``make same BASE=v0.1.0`` (or ``python tests/promises/same_as_before.py BASE``).

For changes that should alter no number. Runs the commands of ``BASE``, checked out into a temporary folder, and those
of this tree on the same inputs with the same seeds, and compares what they leave:

- token files of ``preprocess nanogpt``, ``megatron`` and ``shuffle``: every byte but those of the manifests, whose
  hashes of the token files are compared;
- trainings of 20 steps (our GPT-2 with dropout, our Llama, a class of transformers; one process and two): losses,
  gradient norms and learning rates in ``metrics.jsonl``, weights and optimizer state in every checkpoint, bit for bit;
- each of these trainings stopped at step 10 by ``BASE`` and continued by this tree: the same weights at step 20.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS, MIDDLE = 20, 10
WORDS = [
    "the",
    "of",
    "a",
    "light",
    "water",
    "stone",
    "moves",
    "under",
    "quiet",
    "morning",
    "never",
    "ü",
    "水",
    "🙂",
]

GPT2 = {
    "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
    "vocab_size": 257, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "dropout": 0.1,
}  # fmt: skip
LLAMA = {
    "_target_": "automodel_cli.models.llama.build_llama_model",
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
QWEN2 = {
    "_target_": "automodel_cli.models.hf.from_config",
    "config": {
        "_target_": "transformers.Qwen2Config", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
PREPARED = {
    "nanogpt": ["nanogpt", "--dataset", "IN", "--tokenizer", "byte", "--output-dir", "OUT", "--val-fraction", "0.1"],
    "nanogpt shuffled": ["nanogpt", "--dataset", "IN", "--tokenizer", "byte", "--output-dir", "OUT", "--shuffle"],
    "nanogpt shards": [
        "nanogpt", "--dataset", "IN", "--tokenizer", "byte", "--output-dir", "OUT", "--shard-tokens", "20000",
        "--num-workers", "2",
    ],
    "megatron": ["megatron", "--input", "IN", "--output-path", "OUT/text", "--tokenizer", "byte", "--append-eod"],
    "megatron shuffled": [
        "megatron", "--input", "IN", "--output-path", "OUT/text", "--tokenizer", "byte", "--append-eod", "--shuffle",
    ],
    "shuffle": ["shuffle", "--dataset", "IN", "--output-dir", "OUT"],
}  # fmt: skip
TRAINED = {
    "gpt2": (GPT2, 1, {}),
    "llama": (LLAMA, 1, {}),
    "qwen2": (QWEN2, 1, {}),
    "gpt2, two ranks": (GPT2, 2, {}),
    "llama, ddp": (LLAMA, 2, {"distributed": {"strategy": "ddp"}}),
}


def main() -> int:
    """Run both, print a line for each comparison; 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit to compare with")
    base = parser.parse_args().base
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "base"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), base], cwd=ROOT, check=True)
        try:
            same = compare(folder, before=tree, after=ROOT)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return 0 if same else 1


def compare(folder: Path, *, before: Path, after: Path) -> bool:
    """All comparisons, each printed; whether all are the same."""
    text = folder / "text.jsonl"
    write_text(text)
    verdicts = []
    for name, words in PREPARED.items():
        outputs = [
            prepared(tree, folder / f"{name}-{which}", words, text) for which, tree in enumerate((before, after))
        ]
        verdicts.append(told(f"preprocess {name}: {len(outputs[0])} files", outputs[0] == outputs[1]))
    for name, (model, ranks, rest) in TRAINED.items():
        run = [folder / f"{name}-{which}" for which in ("before", "after", "continued")]
        for place in run:
            write_config(place, model, folder / "nanogpt-0", rest)
        train(before, run[0], ranks)
        train(after, run[1], ranks)
        verdicts.append(told(f"{name}: losses and norms", numbers(run[0]) == numbers(run[1])))
        verdicts.append(told(f"{name}: weights and optimizer", tensors(run[0]) == tensors(run[1])))
        train(before, run[2], ranks, steps=MIDDLE)
        train(after, run[2], ranks)
        verdicts.append(told(f"{name}: stopped by the old, continued", tensors(run[0]) == tensors(run[2])))
    return all(verdicts)


def told(what: str, same: bool) -> bool:
    """Print a verdict."""
    print(f"{'same  ' if same else 'DIFFER'}  {what}", flush=True)
    return same


def automodel(tree: Path, folder: Path, *words: str) -> None:
    """The command line of ``tree``."""
    environ = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, "-P", "-m", "automodel_cli", *words]
    done = subprocess.run(command, cwd=folder, env=environ, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{tree.name}: automodel {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def write_text(path: Path) -> None:
    """Three thousand documents of words, some empty, some long."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(3000):
            length = draw.choice([0, 3, 20, 60, 400]) if number % 50 == 0 else draw.randrange(1, 40)
            file.write(json.dumps({"text": " ".join(draw.choices(WORDS, k=length)), "id": number}) + "\n")


def prepared(tree: Path, folder: Path, words: list[str], text: Path) -> dict[str, str]:
    """Hashes of the files that a preprocess command leaves; of manifests, the hashes they list."""
    folder.mkdir()
    given = [word.replace("IN", str(text)).replace("OUT", str(folder)) for word in words]
    automodel(tree, folder, "preprocess", *given)
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith("manifest.json"):
                content = json.dumps(json.loads(content).get("files"), sort_keys=True).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def write_config(folder: Path, model: dict, data: Path, rest: dict) -> None:
    """``cfg.yaml`` of a training of 20 steps."""
    folder.mkdir()
    files = {
        name: {
            "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "file_pattern": str(data / f"{name}.bin"),
            "seq_len": 32,
            "shuffle_files": name == "dataset",
        }
        for name in ("dataset", "val")
    }
    config = {
        "model": model,
        "dataset": files["dataset"],
        "validation_dataset": files["val"],
        "step_scheduler": {
            "global_batch_size": 8, "local_batch_size": 2, "max_steps": STEPS, "ckpt_every_steps": MIDDLE,
            "val_every_steps": MIDDLE,
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0e-3},
        "lr_scheduler": {"lr_decay_style": "cosine", "lr_warmup_steps": 4, "lr_decay_steps": STEPS},
        "rng": {"seed": 7},
        "checkpoint": {"checkpoint_dir": "run"},
        "compile": {"enabled": False},
        **rest,
    }  # fmt: skip
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


def train(tree: Path, folder: Path, ranks: int, *, steps: int = STEPS) -> None:
    """Train up to ``steps``, from where the run folder is."""
    launch = ["--nproc-per-node", str(ranks)] if ranks > 1 else []
    automodel(tree, folder, "pretrain", "llm", "-c", "cfg.yaml", "--step_scheduler.max_steps", str(steps), *launch)


def numbers(folder: Path) -> list[tuple]:
    """Step, loss, gradient norm and learning rate of every update."""
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines if "grad_norm" in line]


def tensors(folder: Path) -> dict[str, str]:
    """Hashes of the tensor files of the checkpoints, without the export that a run leaves at its end."""
    paths = [path for path in sorted((folder / "run").rglob("*.safetensors")) if path.parent.name != "hf"]
    assert paths, f"{folder} has no checkpoint"
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    shutil.which("git") or sys.exit("git is needed to check out the other commit")
    sys.exit(main())
