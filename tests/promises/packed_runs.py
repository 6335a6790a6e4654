"""Data sets of rows of different length, and tiny runs that pack them. Named by file in the configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.data import Dataset, IterableDataset

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


class Stateful(IterableDataset):
    """Says where it is, and knows nothing of ranks."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < ROWS:
            self.position += 1
            yield row(self.position - 1)
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Sharded(IterableDataset):
    """Hands out a part to each rank."""

    def __init__(self, first=0, step=1):
        self.first, self.step = first, step

    def shard(self, num_shards, index):
        return Sharded(index, num_shards)

    def __iter__(self):
        yield from map(row, range(self.first, ROWS, self.step))


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
