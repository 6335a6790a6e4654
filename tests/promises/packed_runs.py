"""Data sets of rows of different length, and tiny runs that pack them. Named by file in the configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tests.data import user_sets
from torch.utils.data import Dataset

ROWS, SIZE = 60, 24
FILE = Path(__file__)
TRUST = (str(FILE),)


def row(number: int) -> dict[str, Any]:
    """Row ``number``: up to 20 tokens, each the last one plus 0, 1 or 2; the first two are not learned from."""
    drawn = np.random.default_rng(number)
    ids = np.cumsum(drawn.integers(0, 3, drawn.integers(4, 21))) % 61
    return {"input_ids": ids, "loss_mask": np.arange(len(ids)) >= 2}


class Rows(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return row(index)


class Stateful(user_sets.Stateful):
    def __init__(self):
        super().__init__(row, ROWS)


class Sharded(user_sets.Sharded):
    def __init__(self):
        super().__init__(row, ROWS)


def configuration(folder: Path, dataset: str, **sections: Any) -> Path:
    """A run that packs ``dataset``, in fp32 with dropout, saving every second update."""
    config = {
        "model": {
            "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
            "vocab_size": 61,
            "n_positions": SIZE,
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "dropout": 0.1,
        },
        "precision": "fp32",
        "dataset": {"_target_": f"{FILE}:{dataset}"},
        "validation_dataset": {"_target_": f"{FILE}:Rows"},
        "packed_sequence": {"packed_sequence_size": SIZE},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01},
        "checkpoint": {
            "checkpoint_dir": str(folder / "run"),
            "keep_last": None,
            "save_consolidated": False,
        },
        **sections,
    }
    config["step_scheduler"] = {
        "global_batch_size": 4,
        "local_batch_size": 1,
        "max_steps": 8,
        "ckpt_every_steps": 2,
        **sections.get("step_scheduler", {}),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
