"""A tiny training run on a mesh, and what must not depend on the mesh. Called on every rank through ``run_ranks``."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from automodel_cli.assembly.world import mesh_sizes
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.start import build_mesh
from automodel_cli.distributed.world import World
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.recipes.pretrain import PretrainRecipe

STEPS = 20
GPT2 = {
    "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
    "vocab_size": 61,
    "n_positions": 16,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
}
QWEN2 = {
    "_target_": "transformers.AutoModelForCausalLM.from_config",
    "config": {
        "_target_": "transformers.Qwen2Config",
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
        "tie_word_embeddings": True,
    },
}
LLAMA = {
    "_target_": "automodel_cli.models.llama.build_llama_model",
    **{name: value for name, value in QWEN2["config"].items() if name not in ("_target_", "tie_word_embeddings")},
}

GPT = {
    **{name: value for name, value in LLAMA.items() if name != "rms_norm_eps"},
    "_target_": "automodel_cli.models.gpt.build_gpt_model",
    "init": "gpt2",
    **dict.fromkeys(("qk_norm_gain", "norm_gain", "bias", "residual_scalars"), True),
}
GPT_ALL = {**GPT, "hidden_size": 32, "value_embeddings": True, "window_pattern": "S", "short_window": 5}

OWN_FILE = Path(__file__).with_name("own_model.py")
OWN = {"_target_": f"{OWN_FILE}:OwnModel", "vocab_size": 61, "width": 16}
TRUST = (str(OWN_FILE),)


def configuration(folder: Path, *, model: dict[str, Any] = GPT2, **sections: Any) -> PretrainConfig:
    """A run of ``STEPS`` updates of 8 rows, 15 tokens each (which no mesh divides evenly), in fp32 without dropout."""
    dataset = {
        "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "seq_len": 15,
        **sections.pop("windows", {}),
    }
    config = {
        "model": model,
        "precision": "fp32",
        "dataset": {**dataset, "file_pattern": str(folder / "train.bin"), "shuffle_files": True},
        "validation_dataset": {**dataset, "file_pattern": str(folder / "val.bin")},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01},
        "lr_scheduler": {"lr_decay_style": "cosine", "lr_warmup_steps": 2},
        "step_scheduler": {
            "global_batch_size": 8,
            "local_batch_size": 2,
            "max_steps": STEPS,
            "val_every_steps": "final",
            **sections.pop("step_scheduler", {}),
        },
        "checkpoint": {"enabled": False},
        **sections,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(config))
        file.flush()
        return load_config(PretrainConfig, Path(file.name), [], trust=TRUST)


def on_mesh(world: World, cfg: PretrainConfig) -> World:
    """The same processes, arranged as ``cfg`` says."""
    if world.size == 1:
        return world
    return dataclasses.replace(world, mesh=build_mesh("cpu", mesh_sizes(cfg, world.size)))


def train(world: World, folder: str, runs: dict[str, dict[str, Any]], steps: int = STEPS) -> dict[str, Any]:
    """Numbers of each run: the hash of its initial weights, rows by step, losses, norms, validation loss."""
    found = {}
    for name, sections in runs.items():
        scheduler = {"max_steps": steps, **sections.get("step_scheduler", {})}
        cfg = configuration(Path(folder), **{**sections, "step_scheduler": scheduler})
        found[name] = _train(world, cfg)
    return found


def _train(world: World, cfg: PretrainConfig) -> dict[str, Any]:
    recipe = PretrainRecipe(cfg, world=on_mesh(world, cfg), trust=TRUST)
    recipe.setup()
    initial = weights_hash(recipe.model)
    records: list[dict[str, Any]] = []
    rows = _watch_rows(recipe)
    with log_into(records.append):
        result = recipe.run_train_validation_loop()
    by_rank = world.gather([recipe.world.dp_rank, rows])
    return {
        "initial": initial,
        "rows": _rows_by_step(dict(by_rank), steps=cfg.step_scheduler.max_steps),
        "losses": [record["loss"] for record in records],
        "norms": [record["grad_norm"] for record in records],
        "tokens": [record["num_label_tokens"] for record in records],
        "validation": result.val_losses["default"],
    }


def log_into(take: Callable[[dict[str, Any]], object]) -> AbstractContextManager[object]:
    """Inside, records of updates go there and not to a file."""
    return mock.patch.object(MetricsLog, "train", lambda log, record: take(record))


def weights_hash(model: Any) -> str:
    """Hash of all weights, put together from the pieces of all ranks."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        digest.update(name.encode())
        digest.update(whole.detach().numpy().tobytes())
    return digest.hexdigest()


def _watch_rows(recipe: PretrainRecipe) -> list[list[int]]:
    """Fills with a number for each row of each micro-batch that this rank is given."""
    seen: list[list[int]] = []
    part = recipe.parallel.shard_batch

    def watched(batch: Any) -> Any:
        if recipe.model.training and recipe.state.step < recipe.cfg.step_scheduler.max_steps:
            seen.append([zlib.crc32(row.numpy().tobytes()) for row in batch.input_ids])
        return part(batch)

    recipe.parallel.shard_batch = watched  # type: ignore[method-assign]
    return seen


def _rows_by_step(by_dp_rank: dict[int, list[list[int]]], *, steps: int) -> list[list[int]]:
    """The rows of all data-parallel ranks at each step, sorted: which samples made this update."""
    found = []
    for step in range(steps):
        rows: list[int] = []
        for micro_batches in by_dp_rank.values():
            each = len(micro_batches) // steps
            rows += [row for batch in micro_batches[step * each : (step + 1) * each] for row in batch]
        found.append(sorted(rows))
    return found
