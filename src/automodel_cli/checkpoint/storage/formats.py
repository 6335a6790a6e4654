"""The ways in which named tensors are stored, by the name that ``checkpoint.model_save_format`` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.local_shards import LocalShard
from automodel_cli.checkpoint.storage.sharded import WholeTensor
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

SAVE_FORMATS = ("safetensors", "torch_save")


class StoredTensors(Protocol):
    """The tensors below a folder, read one at a time."""

    whole: dict[str, WholeTensor]

    def read(self, name: str) -> torch.Tensor: ...


class TensorStorage(Protocol):
    """What a module that stores tensors in a folder of a step has."""

    def save_shards(
        self, shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World
    ) -> Any:
        """Write one rank's shards; JSON that :meth:`finish` gets of every rank."""

    def finish(self, notes: list[Any], writer: StepWriter, folder: str) -> None:
        """On rank 0, when all have written."""

    def scan(self, reader: StepReader, folder: str) -> dict[str, WholeTensor]:
        """Names, types and whole shapes."""

    def load_tensors(
        self,
        reader: StepReader,
        folder: str,
        targets: Mapping[str, torch.Tensor],
        *,
        cast: bool = False,
        world: World | None = None,
    ) -> None:
        """Fill ``targets``, after checking every hash."""

    def StoredTensors(self, reader: StepReader, folder: str) -> StoredTensors:
        """To read them one at a time, hashes unchecked."""


def storage(save_format: str) -> TensorStorage:
    """The module that writes and reads that format.

    Raises:
        CheckpointError: there is none.
    """
    if save_format == "safetensors":
        return sharded
    if save_format == "torch_save":
        # torch.distributed.checkpoint takes a second to import
        from automodel_cli.checkpoint.storage import torch_save

        return torch_save
    raise CheckpointError(f"unknown save format {save_format!r}", f"one of {', '.join(SAVE_FORMATS)}")


def storage_of(reader: StepReader) -> TensorStorage:
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
