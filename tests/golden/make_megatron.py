"""Makes tests/golden/megatron/ with megatron-core 0.16.1: files by its builder, arrays and samples of its data sets.

    pip install 'automodel-cli[conformance]' && python tests/golden/make_megatron.py

``cases.json`` holds the arguments of each case as ``MegatronPretraining`` takes them, with paths relative to the
folder; ``CASE.npz`` what megatron-core made of them: ``{split}/{array}`` of the blend, ``{split}/{i}/{array}`` of data
set i, ``{split}/sample/{field}`` of the first samples.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

warnings.simplefilter("ignore")
from megatron.core.datasets.blended_megatron_dataset_builder import (  # noqa: E402
    BlendedMegatronDatasetBuilder,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # noqa: E402
from megatron.core.datasets.utils import get_blend_from_list  # noqa: E402

FOLDER = Path(__file__).parent / "megatron"
EOD, VOCAB, SAMPLES = 40, 50, 6
SPLITS = ("train", "valid", "test")
WEIGHTED = ["30", "a", "70", "b"]

CASES: dict[str, dict[str, Any]] = {
    "single": {"paths": ["a"], "sizes": [300, 20, None], "split": "90,10,0", "seq_length": 16},
    "several_epochs": {"paths": ["b"], "sizes": [150, 60, 7], "split": "0.8, 0.15, 0.05", "seq_length": 33},
    "weighted": {"paths": WEIGHTED, "sizes": [300, 40, 20], "split": "80,10,10", "seq_length": 16},
    "unweighted": {"paths": ["a", "b", "c"], "sizes": [None, 30, None], "split": "90,10,0", "seq_length": 16},
    "own_files": {
        "paths": {"train": ["a", "b"], "valid": ["c"], "test": WEIGHTED},
        "sizes": [100, None, 50],
        "seq_length": 16,
    },
    "masks": {
        "paths": ["a"],
        "sizes": [40, None, None],
        "split": "70,30,0",
        "seq_length": 20,
        "pad": 3,
        "drop_last_partial_validation_sequence": False,
        "reset_position_ids": True,
        "reset_attention_mask": True,
        "eod_mask_loss": True,
        "create_attention_mask": True,
    },
    "no_extra_token": {
        "paths": ["c", "a"],
        "sizes": [None, None, None],
        "split": "60,20,20",
        "seq_length": 16,
        "add_extra_token_to_sequence": False,
    },
}


class Stub:
    """A tokenizer as megatron-core asks for one."""

    eod, vocab_size = EOD, VOCAB

    def __init__(self, pad: int) -> None:
        self.pad = pad

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"name": "stub", "pad": self.pad}


def documents(random: np.random.Generator, count: int, longest: int, sizes: list[int]) -> list[list[np.ndarray]]:
    return [
        [random.integers(0, VOCAB, random.integers(0, longest)) for _ in range(random.choice(sizes))]
        for _ in range(count)
    ]


def write(prefix: Path, content: list[list[np.ndarray]], dtype: Any) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in content:
        flat = np.concatenate([*document, np.empty(0, np.int64)]).astype(dtype)
        builder.add_document(flat, [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


def build(case: dict[str, Any]) -> list[Any]:
    paths = case["paths"]
    own = isinstance(paths, dict)
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=case["seq_length"],
        blend=None if own else get_blend_from_list(paths),
        blend_per_split=[get_blend_from_list(paths[split]) for split in SPLITS] if own else None,
        split=None if own else case["split"],
        tokenizer=Stub(case.get("pad", -1)),
        add_extra_token_to_sequence=case.get("add_extra_token_to_sequence", True),
        drop_last_partial_validation_sequence=case.get("drop_last_partial_validation_sequence", True),
        create_attention_mask=case.get("create_attention_mask", False),
        reset_position_ids=case.get("reset_position_ids", False),
        reset_attention_mask=case.get("reset_attention_mask", False),
        eod_mask_loss=case.get("eod_mask_loss", False),
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, case["sizes"], lambda: True, config).build()


def arrays(split: str, dataset: Any) -> dict[str, np.ndarray]:
    parts = [dataset] if isinstance(dataset, GPTDataset) else dataset.datasets
    found = {f"{split}/length": np.array(len(dataset))}
    if dataset is not parts[0]:
        found[f"{split}/dataset_index"] = dataset.dataset_index
        found[f"{split}/dataset_sample_index"] = dataset.dataset_sample_index
    for number, part in enumerate(parts):
        found[f"{split}/{number}/hash"] = np.array(part.unique_description_hash)
        for name in ("document_index", "sample_index", "shuffle_index"):
            found[f"{split}/{number}/{name}"] = getattr(part, name)
    samples = []
    for number in range(min(SAMPLES, len(dataset))):
        for part in parts:
            part.masks_and_position_ids_are_cached = False  # a cached loss mask decays
        samples.append(dataset[number])
    for name in samples[0]:
        found[f"{split}/sample/{name}"] = np.stack([np.asarray(sample[name]) for sample in samples])
    return found


def main() -> None:
    random = np.random.default_rng(7)
    FOLDER.mkdir(exist_ok=True)
    write(FOLDER / "a", documents(random, 120, 60, [1, 1, 1, 2, 0]), np.uint16)
    write(FOLDER / "b", documents(random, 80, 30, [1]), np.uint16)
    write(FOLDER / "c", documents(random, 40, 150, [1, 3]), np.int32)
    with tempfile.TemporaryDirectory() as scratch:  # megatron-core leaves its caches beside the data
        for path in FOLDER.glob("?.*"):
            shutil.copy(path, scratch)
        os.chdir(scratch)
        for name, case in CASES.items():
            found: dict[str, np.ndarray] = {}
            for split, dataset in zip(SPLITS, build(case), strict=True):
                if dataset is not None:
                    found.update(arrays(split, dataset))
            np.savez_compressed(FOLDER / f"{name}.npz", **found)
    (FOLDER / "cases.json").write_text(json.dumps(CASES, indent=2) + "\n")


if __name__ == "__main__":
    main()
