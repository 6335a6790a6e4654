"""The ways in which named tensors are stored, by the name that ``checkpoint.model_save_format`` gives them.

Each is a module with ``save_shards``, ``finish``, ``scan``, ``load_tensors`` and ``StoredTensors``.
"""

from __future__ import annotations

from typing import Any

from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.errors import CheckpointError

SAVE_FORMATS = ("safetensors", "torch_save")


def storage(save_format: str) -> Any:
    """The module that writes and reads that format.

    Raises:
        CheckpointError: there is none.
    """
    if save_format == "safetensors":
        return sharded
    if save_format == "torch_save":
        from automodel_cli.checkpoint.storage import (
            torch_save,  # torch.distributed.checkpoint: a second to import
        )

        return torch_save
    raise CheckpointError(f"unknown save format {save_format!r}", f"one of {', '.join(SAVE_FORMATS)}")


def storage_of(reader: StepReader) -> Any:
    """The module that reads what a step folder holds.

    Raises:
        CheckpointError: it is in a format that is not known here.
    """
    name = reader.manifest.get("save_format")
    if name not in SAVE_FORMATS:
        raise CheckpointError(
            f"{reader.folder} was saved as {name!r}, expected one of {', '.join(SAVE_FORMATS)}",
            "it was written by a newer version of this program",
        )
    return storage(name)
