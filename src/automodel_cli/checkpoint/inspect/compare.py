"""How two checkpoints differ: tensors, configuration, facts. Without torch; any two of what ``describe`` knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.inspect.describe import checkpoint_tensors, kind_of, weight_files
from automodel_cli.checkpoint.inspect.tensor_values import difference
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, gather
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import read_json, read_yaml, without_controls

# What says nothing that the tensors and the model do not say.
_NOT_COMPARED = ("param_roles", "param_counts")


def diff(a: Path | str, b: Path | str) -> dict[str, Any]:
    """Compare the models of two checkpoints (steps, Hugging Face folders or safetensors files).

    ``changed`` is sorted by relative difference, largest first; where types differ both are given. Tensors of a
    ``torch_save`` checkpoint have no values that can be read here: they count as ``unread``.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    left, right = Path(a), Path(b)
    ours, theirs = _tensors(left), _tensors(right)
    common = [name for name in ours if name in theirs]
    reshaped = [name for name in common if ours[name].shape != theirs[name].shape]
    readable = [name for name in common if name not in reshaped and ours[name].shards and theirs[name].shards]
    rows = [_row(ours[name], theirs[name]) for name in readable]
    changed = [row for row in rows if row["max_abs"] != 0 or "dtype" in row]
    return {
        "a": str(left),
        "b": str(right),
        "added": [tensor.as_dict() for name, tensor in theirs.items() if name not in ours],
        "removed": [tensor.as_dict() for name, tensor in ours.items() if name not in theirs],
        "reshaped": [{"name": n, "shape": [list(ours[n].shape), list(theirs[n].shape)]} for n in reshaped],
        "changed": sorted(changed, key=lambda row: -row["relative"]),
        "equal": len(rows) - len(changed),
        "unread": len(common) - len(reshaped) - len(readable),
        "config": differences(_config(left), _config(right)),
        "facts": differences(_facts(left), _facts(right)),
    }


def _tensors(path: Path) -> dict[str, StoredTensor]:
    if (kind := kind_of(path)) == "run":
        raise CheckpointError(f"{path} is a run folder", "name one of its steps")
    if kind == "checkpoint":
        found = checkpoint_tensors(path, layout.read_step_manifest(path), "model")
    else:
        found = gather(weight_files(path))
    return {tensor.name: tensor for tensor in found}


def _row(a: StoredTensor, b: StoredTensor) -> dict[str, Any]:
    apart = difference(a, b)
    row: dict[str, Any] = {"name": a.name, "max_abs": apart.max_abs, "relative": apart.relative}
    return row if a.dtype == b.dtype else {**row, "dtype": [a.dtype, b.dtype]}


def _config(path: Path) -> Any:
    """config.yaml of a step, config.json of a Hugging Face folder."""
    try:
        if (path / "config.yaml").is_file():
            return read_yaml(path / "config.yaml", CheckpointError)
        if (path / "config.json").is_file():
            return read_json(path / "config.json", CheckpointError)
    except CheckpointError as error:
        return {"unreadable": without_controls(str(error))}
    return {}


def _facts(path: Path) -> dict[str, Any]:
    if kind_of(path) != "checkpoint":
        return {}
    manifest = layout.read_step_manifest(path)
    facts = {key: value for key, value in manifest["facts"].items() if key not in _NOT_COMPARED}
    return {**facts, "step": manifest["step"], "metrics": manifest["metrics"]}


def differences(a: Any, b: Any, where: str = "") -> list[dict[str, Any]]:
    """Leaves of two nested mappings that differ: ``{"key": "model.n_layer", "a": 2, "b": 3}``; None where absent."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        inner = (differences(a.get(key), b.get(key), f"{where}.{key}" if where else str(key)) for key in keys)
        return [row for rows in inner for row in rows]
    return [] if a == b else [{"key": where, "a": a, "b": b}]
