"""Weights of a Hugging Face folder into a model that lies over several ranks: each rank reads its pieces only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from automodel_cli.errors import CheckpointError


def load_pieces(
    targets: Mapping[str, torch.Tensor], files: Sequence[Path], *, rows: Mapping[str, int] | None = None
) -> bool:
    """Fill ``targets`` (by their names in the files) from safetensors; False, and nothing done, if names differ.

    Of a distributed tensor this rank's rows and columns are read, the rest of the file is not. Values are cast.
    ``rows``: how many rows a file has of those tensors that go on with rows of zeros here (vocabulary padding).

    Raises:
        CheckpointError: a tensor has another shape, or a file cannot be read.
    """
    places = _places(files)
    if not targets.keys() <= places.keys():
        return False
    for path in files:
        with _opened(path) as handle:
            for name, target in targets.items():
                if places[name] == path:
                    _fill(target, handle.get_slice(name), name, path, (rows or {}).get(name))
    return True


def _places(files: Sequence[Path]) -> dict[str, Path]:
    """Which file holds each tensor."""
    places: dict[str, Path] = {}
    for path in files:
        with _opened(path) as handle:
            places.update(dict.fromkeys(handle.keys(), path))
    return places


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # the Rust side has an exception class of its own
        raise CheckpointError(f"{path} cannot be read: {error}", "download or make it again") from error


def check_pieces(
    targets: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    *,
    rows: Mapping[str, int] | None = None,
) -> bool:
    """What :func:`load_pieces` says of files with tensors of these ``shapes``, without them.

    Raises:
        CheckpointError: a tensor has another shape.
    """
    if not targets.keys() <= shapes.keys():
        return False
    for name, target in targets.items():
        _check_shape(tuple(shapes[name]), target, name, folder, (rows or {}).get(name))
    return True


def _check_shape(
    found: tuple[int, ...], target: torch.Tensor, name: str, path: Path, rows: int | None
) -> None:
    expected = tuple(target.shape) if rows is None else (rows, *target.shape[1:])
    if found != expected:
        raise CheckpointError(
            f"{path}: {name} has shape {found}, expected {expected}",
            "build the model with the sizes in the folder's config.json",
        )


@torch.no_grad()
def _fill(target: torch.Tensor, stored: Any, name: str, path: Path, rows: int | None) -> None:
    _check_shape(tuple(stored.get_shape()), target, name, path, rows)
    if not isinstance(target, DTensor):
        if rows is not None:
            target[rows:].zero_()
        target[:rows].copy_(stored[:]) if target.dim() else target.copy_(stored[()])
        return
    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    if 0 in shape:  # fewer rows than ranks: this one has none
        return
    piece = [slice(start, start + size) for start, size in zip(offset, shape, strict=True)]
    local = target.to_local()
    if rows is not None:
        there = min(piece[0].stop, rows) - piece[0].start  # rows of this piece that are in the file
        local[max(there, 0) :].zero_()
        if there <= 0:
            return
        piece[0], local = slice(piece[0].start, piece[0].start + there), local[:there]
    local.copy_(stored[tuple(piece)])
