"""Weights of a Hugging Face folder into a model that may lie over several ranks: each rank reads its pieces only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from automodel_cli.checkpoint.storage.local_shards import local_shard
from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.errors import CheckpointError
from automodel_cli.models.interface import CausalLM, HFTensor

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Target:
    """A tensor of the model, and how it lies in the file."""

    tensor: torch.Tensor
    there: HFTensor


def targets_of(model: CausalLM, shapes: Shapes, folder: Path) -> dict[str, Target] | None:
    """Name in the file -> what is filled from it; None where only transformers can map the names.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or (of GPT-2) left over.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = {
        _name_in(shapes, there.name, model.hf_prefix): Target(tensors[ours], there)
        for ours, there in model.hf_tensors().items()
    }
    missing = sorted(targets.keys() - shapes.keys())
    if missing and model.hf_config() is None:
        return None
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is not part of the model" for name in _left_over(model, targets, shapes)]
    for name in sorted(targets.keys() & shapes.keys()):
        found, expected = tuple(shapes[name]), targets[name].there.shape(targets[name].tensor)
        if found != expected:
            problems.append(f"{name} has shape {found}, expected {expected}")
    _refuse(folder, problems)
    return targets


def _name_in(shapes: Shapes, name: str, prefix: str) -> str:
    return name if name in shapes else name.removeprefix(prefix)


def _left_over(model: CausalLM, targets: Mapping[str, Target], shapes: Shapes) -> list[str]:
    if model.hf_ignored is None:
        return []
    zeros = {_name_in(shapes, name, model.hf_prefix) for name in model.hf_zeros()}
    others = sorted(shapes.keys() - targets.keys() - zeros)
    return [name for name in others if not model.hf_ignored.fullmatch(name)]


def _refuse(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise CheckpointError(
            f"the weights in {folder} do not fit the model: {'; '.join(problems[:5])}",
            "build the model with the sizes in the folder's config.json",
        )


def load_pieces(model: CausalLM, files: Sequence[Path], folder: Path) -> bool:
    """Fill ``model`` from safetensors; False, and nothing done, where only transformers can map the names.

    Of a distributed tensor this rank's rows and columns are read, the rest of the file is not. Values are cast.

    Raises:
        CheckpointError: as :func:`targets_of`, or a file cannot be read.
    """
    headers = {path: read_header(path).tensors for path in files}
    shapes = {name: info.shape for tensors in headers.values() for name, info in tensors.items()}
    targets = targets_of(model, shapes, folder)
    if targets is None:
        return False
    zeros = {_name_in(shapes, name, model.hf_prefix) for name in model.hf_zeros()}
    for path, names in headers.items():
        with _opened(path) as handle:
            other = [name for name in names.keys() & zeros if handle.get_tensor(name).any()]
            _refuse(folder, [f"{name} is not part of the model" for name in sorted(other)])
            for name in names.keys() & targets.keys():
                _fill(targets[name], handle.get_slice(name))
    return True


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # the Rust side has an exception class of its own
        raise CheckpointError(f"{path} cannot be read: {error}", "download or make it again") from error


@torch.no_grad()
def _fill(target: Target, stored: Any) -> None:
    shard = local_shard(target.there.name, target.tensor)
    local, rows = shard.values, target.there.rows
    if rows is not None:
        there = max(min(rows - shard.offsets[0], len(local)), 0)  # rows of this piece that are in the file
        local[there:].zero_()
        local = local[:there]
    if local.numel() == 0:  # fewer rows than ranks: this one has none
        return
    piece = tuple(slice(begin, begin + size) for begin, size in zip(shard.offsets, local.shape, strict=True))
    local.copy_(stored[piece[::-1]].t() if target.there.transposed else stored[piece])
