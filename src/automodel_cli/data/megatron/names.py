"""Names that megatron-core gives to its cached indices: the md5 of a description of the data set.

With them ``index_mapping_dir`` can be shared with megatron-core: each finds what the other wrote, where paths, sizes
and tokenizer are spelled alike. (megatron-core does not notice data that was changed; we do.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from automodel_cli.data.megatron.gpt_index import SplitBounds
from automodel_cli.data.megatron.sample_order import OrderSettings


@dataclass(frozen=True)
class CacheKeys:
    """Descriptions of data sets as megatron-core 0.16.1 writes them.

    Args:
        split: the split as text, None where each split has its own files.
        matrix: bounds of train, valid and test, None likewise.
        tokenizer: its ``unique_identifiers``.
    """

    split: str | None
    matrix: Sequence[SplitBounds | None] | None
    tokenizer: Any

    def gpt(self, prefix: str, wanted: int | None, settings: OrderSettings) -> str:
        """The description of one prefix' data set."""
        return _text(
            {
                "class": "GPTDataset",
                "dataset_path": prefix,
                "num_samples": wanted,
                "index_split": settings.split,
                "random_seed": settings.seed,
                "sequence_length": settings.shape.seq_len,
                "split": self.split,
                "split_matrix": self.matrix,
                "tokenizer": self.tokenizer,
            }
        )

    def blend(self, datasets: Sequence[str], weights: Sequence[float], size: int | None, split: str) -> str:
        """The description of a blend of data sets with the given descriptions."""
        return _text(
            {
                "class": "BlendedDataset",
                "datasets": [json.loads(dataset) for dataset in datasets],
                "split": split,
                "weights": list(weights),
                "size": size,
            }
        )


def _text(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=4)
