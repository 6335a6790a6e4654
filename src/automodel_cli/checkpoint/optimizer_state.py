"""Any ``torch.optim.Optimizer`` as named tensors plus JSON, and back; keyed by parameter name, no pickle.

    tensors       "exp_avg/<parameter name>", "momentum_buffer/<parameter name>", ...
    optimizer.json
      class       "torch.optim.adamw.AdamW"
      parameters  the names of all parameters the optimizer holds
      groups      one object a group: its hyper-parameters as they were, and "params": names
      state       {parameter name: {key: value}}; a value is JSON, or one of
                  {"$tensor": name of a tensor}            a tensor in the safetensors file
                  {"$scalar": 1000.0, "$dtype": "F32"}     a tensor without dimensions (a step count)
                  {"$tuple": [...]}, {"$float": "inf"}     what JSON has no word for

Names, not positions: groups may be cut differently by another version or another mesh and the state still
fits. Hyper-parameters that the optimizer's constructor takes (lr, betas, weight_decay) come from the run's
own configuration on load, and what differs from the stored ones is reported; whatever else a group carries
(the running estimates that some optimizers keep there) is state and comes from the file.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.distributed.tensor import DTensor

from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.local_shards import empty_like_parameter
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import FileModel, Items

DOCUMENT = "optim/optimizer.json"
# Keys of groups that no optimizer takes, and that are still the configuration's: the schedule reads them.
_OWN_SETTINGS = {"lr_mult", "wd_mult"}


class Document(FileModel):
    """The frame of ``optimizer.json``; what a value may be is in the table above."""

    class_name: str = Field(alias="class")
    parameters: Items[str]
    groups: Items[dict[str, Any]]
    state: dict[str, dict[str, Any]]


def read_document(reader: StepReader) -> dict[str, Any]:
    """The checked ``optimizer.json`` of a step.

    Raises:
        CheckpointError: it is damaged, or no such document.
    """
    return reader.read_model(DOCUMENT, Document).model_dump(by_alias=True)


@dataclass(frozen=True)
class FlatState:
    """An optimizer's state, flattened: what goes into the safetensors file and what goes into JSON."""

    tensors: dict[str, torch.Tensor]
    document: dict[str, Any]


def _named(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """The parameters in the order of their groups, by name; ``names`` maps ``id(parameter)`` to that in the model."""
    return {
        names.get(id(parameter), f"param_groups.{g}.{i}"): parameter
        for g, group in enumerate(optimizer.param_groups)
        for i, parameter in enumerate(group["params"])
    }


def flatten(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> FlatState:
    """Take an optimizer's ``state_dict`` apart.

    Raises:
        CheckpointError: it holds something that is neither a tensor nor JSON.
    """
    flat, packed = list(_named(optimizer, names)), optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    state = {
        flat[index]: {key: _encode(value, f"{key}/{flat[index]}", tensors) for key, value in values.items()}
        for index, values in packed["state"].items()
    }
    groups = []
    for g, group in enumerate(packed["param_groups"]):
        indices = group.pop("params")
        settings = {key: _encode(value, f"param_groups.{g}/{key}", tensors) for key, value in group.items()}
        groups.append({**settings, "params": [flat[index] for index in indices]})
    document = {"class": _class_name(optimizer), "parameters": sorted(flat), "groups": groups, "state": state}
    return FlatState(tensors, document)


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    kinds = dict.fromkeys(type(one) for one in _owners(optimizer))
    return " + ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


def _owners(optimizer: torch.optim.Optimizer) -> Sequence[torch.optim.Optimizer]:
    """What updates each group: the optimizer, or of several that are combined into it the group's own."""
    return getattr(optimizer, "owners", [optimizer] * len(optimizer.param_groups))


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for ``value``; tensors in it go into ``tensors`` under ``name`` (a path below it when nested)."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, DTensor) and value.dim() == 0:
            value = value.full_tensor()
        if value.dim() == 0 and value.dtype != torch.complex64:
            return {
                "$scalar": _encode(value.item(), name, tensors),
                "$dtype": sharded.dtype_name(value.dtype),
            }
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    key, _, parameter = name.partition("/")
    if isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
        return {inner: _encode(item, f"{key}.{inner}/{parameter}", tensors) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{key}.{i}/{parameter}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise CheckpointError(
        f"the optimizer keeps a {type(value).__name__} in {name!r}, which is neither a tensor nor JSON",
        "such an optimizer cannot be checkpointed without pickle",
    )


def _decode(value: Any, loaded: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, loaded) for item in value]
    if not isinstance(value, dict):
        return value
    if (name := value.get("$tensor")) is not None:
        if name not in loaded:
            raise CheckpointError(f"the optimizer's tensor {name!r} is not in the checkpoint", "it is damaged")
        return loaded[name]
    if "$scalar" in value:
        return torch.tensor(_decode(value["$scalar"], loaded), dtype=sharded.DTYPES[value["$dtype"]])
    if "$float" in value:
        return float(value["$float"])
    if "$tuple" in value:
        return tuple(_decode(item, loaded) for item in value["$tuple"])
    return {key: _decode(item, loaded) for key, item in value.items()}


def check_fits(document: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    """Refuse the state of another optimizer or of other parameters, with the difference.

    Raises:
        CheckpointError: the class or the set of parameters differs.
    """
    if document["class"] != _class_name(optimizer):
        raise CheckpointError(
            f"the checkpoint holds the state of {document['class']}, this run has {_class_name(optimizer)}",
            "resume with the same optimizer, or start from the weights alone: init_from",
        )
    own, stored = set(_named(optimizer, names)), set(document["parameters"])
    if own != stored:
        raise CheckpointError(
            f"the optimizer's parameters differ: {len(stored - own)} only in the checkpoint "
            f"({_few(stored - own)}), {len(own - stored)} only in this run ({_few(own - stored)})",
            "resume with the same model and the same trainable parameters, or use init_from",
        )


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "") or "none"


def targets(
    stored: Mapping[str, StoredTensor],
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
) -> dict[str, torch.Tensor]:
    """Empty tensors for everything stored, lying as the parameter does that each belongs to."""
    parameters = _named(optimizer, names)
    return {
        name: empty_like_parameter(parameters.get(name.partition("/")[2]), whole.shape, sharded.DTYPES[whole.dtype])
        for name, whole in stored.items()
    }


def restore(
    document: Mapping[str, Any],
    loaded: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    *,
    where: Path | str = DOCUMENT,
) -> list[str]:
    """Give ``optimizer`` the stored state; returns a line for each setting that the run now has otherwise.

    Raises:
        CheckpointError: the state cannot be this optimizer's: something is missing in it, or is of another kind.
    """
    try:
        return _restore(document, loaded, optimizer, names)
    except CheckpointError:
        raise
    except Exception as error:  # values of any kind went into an optimizer of any kind
        raise CheckpointError(
            f"{where} cannot be given to {_class_name(optimizer)}: {type(error).__name__}: {error}",
            "use an older checkpoint, or start from the weights alone: init_from",
        ) from error


def _restore(
    document: Mapping[str, Any],
    loaded: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
) -> list[str]:
    parameters, stored = _named(optimizer, names), document["state"]
    state = {i: _decode(stored[name], loaded) for i, name in enumerate(parameters) if name in stored}
    groups = [dict(group) for group in optimizer.state_dict()["param_groups"]]
    changes = _merge_groups(groups, [_decode(group, loaded) for group in document["groups"]], optimizer)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    flat = list(parameters.values())
    for index, values in state.items():
        _undo_casts(optimizer.state[flat[index]], values)
    refuse_incomplete(optimizer, list(parameters), changes)
    return changes


def _undo_casts(own: dict[str, Any], stored: Mapping[str, Any]) -> None:
    """``load_state_dict`` casts moments to the parameter's type; put back those stored otherwise."""
    for key, value in stored.items():
        if key != "step" and isinstance(value, torch.Tensor) and own[key].dtype != value.dtype:
            own[key] = value.to(own[key].device)


def refuse_incomplete(optimizer: torch.optim.Optimizer, names: list[str], changes: list[str]) -> None:
    """Check that each parameter's state holds what the optimizer's next update will look for.

    What that is, a copy of it tells that updates parameters of a few elements; where it cannot be copied, nobody knows.
    (``amsgrad`` switched on needs a maximum that was not kept, for one.)

    Raises:
        CheckpointError: a key is missing, or a tensor that lies beside the parameter has another shape.
    """
    wanted = [
        (parameter, of_copy.get(parameter.dim(), {}))
        for group, owner in zip(optimizer.param_groups, _owners(optimizer), strict=True)
        for of_copy in [_state_of_a_copy(group, type(owner))]
        for parameter in group["params"]
    ]
    for name, (parameter, keys) in zip(names, wanted, strict=True):
        held = optimizer.state.get(parameter) or {}
        for key, lies_beside in keys.items() if held else ():
            found = held.get(key)
            if found is None or (lies_beside and tuple(found.shape) != tuple(parameter.shape)):
                was = f" ({'; '.join(changes)})" if changes else ""
                what = "lacks" if found is None else f"has in another shape ({list(found.shape)})"
                raise CheckpointError(
                    f"the optimizer's state of {name!r} {what} {key!r}, which {_class_name(optimizer)} needs as it is "
                    f"set up now{was}",
                    "resume with the optimizer section of the checkpoint, or start from the weights alone: init_from",
                )


# All different: what only one side sizes (Shampoo's matrices) does not lie beside.
_SIDES = (3, 5, 7, 11, 13, 17)


def _state_of_a_copy(group: Mapping[str, Any], kind: type[torch.optim.Optimizer]) -> dict[int, dict[str, bool]]:
    """By a parameter's dimensions, the keys that a group keeps, and whether each is a tensor of its shape."""
    taken = inspect.signature(kind).parameters
    settings = {key: value for key, value in group.items() if key in taken}
    found = {}
    for dims in {parameter.dim() for parameter in group["params"]}:
        try:
            tiny = torch.zeros(_SIDES[:dims], requires_grad=True)
            tiny.grad = torch.zeros_like(tiny)
            copy = kind([{**settings, "params": [tiny]}])  # type: ignore[call-arg]
            copy.step()
        except Exception:  # it takes other arguments, a closure, a device: then it is not known
            return {}
        found[dims] = {
            key: dims > 0 and isinstance(value, torch.Tensor) and value.shape == tiny.shape
            for key, value in copy.state[tiny].items()
            if value is not None
        }
    return found


def _merge_groups(
    groups: list[dict[str, Any]], stored: list[dict[str, Any]], optimizer: torch.optim.Optimizer
) -> list[str]:
    """Put stored group state into ``groups`` in place; report settings that differ."""
    if len(groups) != len(stored):
        return [f"parameter groups: now {len(groups)}, were {len(stored)}; their settings are the run's own"]
    changes = []
    for g, (own, old, owner) in enumerate(zip(groups, stored, _owners(optimizer), strict=True)):
        settings = inspect.signature(type(owner).__init__).parameters.keys() | _OWN_SETTINGS
        for key, value in old.items():
            if key in ("params", "initial_lr"):
                continue
            if key not in settings:
                own[key] = value
            elif key != "lr" and own.get(key) != value:  # lr is the schedule's: it differs at every step
                changes.append(f"optimizer group {g}: {key} is now {own.get(key)!r}, was {value!r}")
    return changes
