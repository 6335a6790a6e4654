"""Are a model's weights numbers? Asked before they are saved, and after they are loaded.

Parameters only: a buffer may hold infinities by design (a mask of ``-inf``, say). Each rank looks at its own pieces.
"""

from __future__ import annotations

import math

import torch
from torch.distributed.tensor import DTensor


def nonfinite_parameters(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity in this rank's pieces; waits for the device once."""
    held = {name: _local(parameter.detach()) for name, parameter in model.named_parameters()}
    looked_at = {name: tensor for name, tensor in held.items() if _can_be_odd(tensor)}
    if not looked_at:
        return []
    sound = torch.stack([_largest(tensor).isfinite() for tensor in looked_at.values()]).tolist()
    return [name for name, is_sound in zip(looked_at, sound, strict=True) if not is_sound]


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    # NaN where one is NaN; needs no memory, unlike isfinite.
    return torch.linalg.vector_norm(tensor, ord=math.inf)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _can_be_odd(tensor: torch.Tensor) -> bool:
    """Whether there are values that could be no numbers, of a type that a norm can be taken of."""
    return tensor.numel() > 0 and tensor.dtype in _FLOATS and not tensor.is_meta


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
