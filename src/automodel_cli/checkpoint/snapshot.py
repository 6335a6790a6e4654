"""What one rank has to write for a step: its shards of the tensors, and (rank 0) the documents beside them.

Taken in the main thread, as the ranks agree here who writes what. Writing then needs no model and no optimizer;
``staged`` copies the values to the CPU, so that training may go on while they are written. The copies lie in
buffers that the next save uses again: one copy of what this rank writes is held, pinned where there is a GPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from automodel_cli.checkpoint import optimizer_state
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.local_shards import LocalShard, reduce_partial, shards_to_write
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

# What wrappers add to the names of the modules in them.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of which a norm can be taken


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a step.

    Attributes:
        shards: by folder (``model``, ``optim``, ``ema``), what this rank writes.
        documents: by name, JSON that rank 0 writes into those folders.
        tied: names that are another tensor, and that tensor's name.
        shapes: by folder, type and shape of every tensor of the step.
    """

    shards: dict[str, dict[str, LocalShard]]
    documents: dict[str, Any]
    tied: dict[str, str]
    shapes: dict[str, dict[str, Any]]

    def staged(self, staging: Staging) -> Snapshot:
        """The same with values of its own, on the CPU."""
        shards = {
            folder: {
                name: replace(shard, values=staging.copy(f"{folder}/{name}", shard.values))
                for name, shard in of_folder.items()
            }
            for folder, of_folder in self.shards.items()
        }
        staging.finish()
        return replace(self, shards=shards, documents=copy.deepcopy(self.documents))

    def reserve(self, staging: Staging) -> None:
        """Make the buffers that ``staged`` will copy into."""
        for folder, of_folder in self.shards.items():
            for name, shard in of_folder.items():
                staging.buffer(f"{folder}/{name}", shard.values)


class Staging:
    """Buffers on the CPU, kept from one save to the next: pinning and first touches are paid once."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def buffer(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The buffer for values of this name and shape, made when it is first asked for."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            pinned = values.device.type == "cuda"
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
            self._buffers[name] = buffer
        return buffer

    def copy(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Values on their way into a buffer; they are there after :meth:`finish`."""
        buffer, pinned = self.buffer(name, values), values.device.type == "cuda"
        buffer.copy_(values, non_blocking=pinned)
        if pinned:
            self._devices.add(values.device)
        return buffer

    def finish(self) -> None:
        """Wait until every copy has arrived."""
        for device in self._devices:
            torch.cuda.synchronize(device)


def take(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    world: World,
    *,
    what: str,
    average: Mapping[str, torch.Tensor] | None = None,
) -> Snapshot:
    """Share out the tensors of ``model`` and ``optimizer``; all ranks call this, values stay where they are.

    ``average``: that of the model's parameters, by name.

    Raises:
        CheckpointError: something in them is neither tensor nor JSON, or is sharded in an unknown way.
    """
    tensors, tied = untied(model_tensors(model), world)
    documents: dict[str, Any] = {}
    stored = {"model": reduce_partial(tensors)}
    if (model_config := getattr(model, "model_config", None)) is not None:
        documents["model/config.json"] = model_config()
    if average:
        stored["ema"] = dict(average)
    if optimizer is not None:
        flat = optimizer_state.flatten(optimizer, names_by_id(model))
        documents["optim/optimizer.json"] = flat.document
        stored["optim"] = reduce_partial(flat.tensors)
    return Snapshot(
        shards={folder: shards_to_write(tensors, world, what=what) for folder, tensors in stored.items()},
        documents=documents,
        tied=tied,
        shapes={folder: _shapes(tensors) for folder, tensors in stored.items()},
    )


def untied(tensors: Mapping[str, torch.Tensor], world: World) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that are one and the same only once, and ``{other name: name it is stored under}``; all ranks agree.

    Rank 0 decides: where a rank's own piece is empty, it cannot tell.
    """
    ties: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        held = _local(tensor)
        place = held.untyped_storage()._cdata if held.is_meta else held.data_ptr()
        key = (held.device, place, held.storage_offset(), held.dtype, tuple(held.shape), held.stride())
        if held.numel() and seen.setdefault(key, name) != name:
            ties[name] = seen[key]
    if world.size > 1:
        ties = world.broadcast(ties)
    return {name: tensor for name, tensor in tensors.items() if name not in ties}, ties


def nonfinite_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity in this rank's pieces; waits for the device once.

    Parameters only: a buffer may hold infinities by design (a mask of ``-inf``, say).
    """
    largest: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        held = _local(parameter.detach())
        if held.numel() and held.dtype in _FLOATS and not held.is_meta:
            # NaN where one is NaN; needs no memory, unlike isfinite
            largest[name] = torch.linalg.vector_norm(held, ord=math.inf)
    if not largest:
        return []
    sound = torch.stack([norm.isfinite() for norm in largest.values()]).tolist()
    return [name for name, is_sound in zip(largest, sound, strict=True) if not is_sound]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name, without the prefixes that wrapping a module adds to names.

    Raises:
        CheckpointError: the model keeps something else in its state.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"the model keeps a {type(value).__name__} in {name!r}, which is not a tensor",
                "such a module cannot be checkpointed without pickle",
            )
        tensors[plain_name(name)] = value.detach()
    return tensors


def names_by_id(model: torch.nn.Module) -> dict[int, str]:
    """``id(parameter)`` to the name that :func:`model_tensors` gives it."""
    return {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by the names that :func:`model_tensors` gives them; a tied one once."""
    return {plain_name(name): one for name, one in model.named_parameters() if one.requires_grad}


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers added."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: [sharded.dtype_name(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
