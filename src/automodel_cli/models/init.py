"""Initial weights that depend on (seed, name) alone.

Each tensor gets its own generator, seeded by a hash of the run's seed and the parameter's (or module's) name.
So the numbers do not depend on the order of construction, on the device, on how many ranks hold a piece of
the tensor, or on whether another layer was added before it. Numbers are always drawn on the CPU, one tensor
at a time, and copied: peak memory is one tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.overrides import TorchFunctionMode

_RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_)


def derive_seed(seed: int, *keys: object) -> int:
    """A 63-bit seed for the stream named by ``keys``; equal arguments give equal seeds in every process."""
    text = "/".join([str(seed), *map(str, keys)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(seed: int, name: str) -> torch.Generator:
    """The CPU generator from which the weights called ``name`` are drawn."""
    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, "init", name))


@torch.no_grad()
def copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a full CPU tensor into ``target``; of a sharded target each rank keeps its own piece."""
    if isinstance(target, DTensor):
        # Every rank has drawn the same numbers, so no rank needs to send any.
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        piece = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
        target.to_local().copy_(piece)
    else:
        target.copy_(whole)


def fill_normal(target: Tensor, *, std: float, seed: int, name: str, rows: int | None = None) -> None:
    """Fill ``target`` with N(0, std); rows from ``rows`` on (vocabulary padding) are zero."""
    whole = torch.zeros(target.shape, dtype=torch.float32)
    logical = whole if rows is None else whole[:rows]
    logical.normal_(0.0, std, generator=keyed_generator(seed, name))
    copy_whole(target, whole)


def fill_constant(target: Tensor, value: float) -> None:
    """Fill ``target`` with one number."""
    with torch.no_grad():
        target.fill_(value)


class DrawOnCPU(TorchFunctionMode):
    """Inside this mode random fills of any tensor are drawn on the CPU from its global generator and copied.

    Initial values then do not depend on the device, and a sharded tensor gets its piece of the whole.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # torch.nn.init's functions come here before the fills inside them, and under the name "tensor".
        initializes = getattr(func, "__module__", "") == "torch.nn.init"
        if not initializes and func not in _RANDOM_FILLS:
            return func(*args, **kwargs)
        target, *rest = [kwargs.pop("tensor")] if "tensor" in kwargs else args
        if target.is_cpu and not isinstance(target, DTensor):
            return func(target, *rest, **kwargs)
        whole = torch.empty(target.shape, dtype=torch.float32)
        func(whole, *rest, **kwargs)
        copy_whole(target, whole)
        return target


def children_first(root: nn.Module, owners: type[nn.Module]) -> Iterator[tuple[str, nn.Module, Any]]:
    """(name, module, innermost enclosing module of kind ``owners``), every module after its children."""

    def walk(name: str, module: nn.Module, owner: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
        owner = module if isinstance(module, owners) else owner
        for child_name, child in module.named_children():
            yield from walk(f"{name}.{child_name}" if name else child_name, child, owner)
        yield name, module, owner

    yield from walk("", root, root)


def is_on_meta(module: nn.Module) -> bool:
    """Whether any parameter of ``module`` has a shape but no storage yet."""
    return any(parameter.is_meta for parameter in module.parameters())
