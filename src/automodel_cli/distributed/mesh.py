"""How many ranks along each axis: sizes that a user writes -> a mesh of every process.

    dp_size = dp_replicate x dp_shard          ranks that see different data
    world   = dp_replicate x dp_shard x cp x tp

``dp_replicate`` copies the model, ``dp_shard`` spreads its weights, ``cp`` shares a sequence, ``tp`` a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from automodel_cli.errors import ConfigError
from automodel_cli.text import plural


@dataclass(frozen=True)
class MeshSizes:
    """Ranks along each axis, outermost first (the order of ``world.MESH_AXES``)."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def world(self) -> int:
        """Ranks in the mesh."""
        return math.prod(astuple(self))

    def __str__(self) -> str:
        named = {name: size for name, size in vars(self).items() if size > 1}
        return " x ".join(f"{name} {size}" for name, size in named.items()) or "1"


def fill_mesh(world: int, sizes: Mapping[str, int]) -> MeshSizes:
    """Sizes by axis name, a missing ``dp_shard`` taking what the others leave of ``world``."""
    given = {axis: size for axis, size in sizes.items() if axis != "dp_shard"}
    left, rest = divmod(world, math.prod(given.values()))
    assert rest == 0, f"{dict(sizes)} does not divide {world} ranks"
    return MeshSizes(**{"dp_shard": left, **sizes})


def plan_mesh(
    world: int,
    *,
    strategy: str = "fsdp2",
    dp_size: int | None = None,
    dp_replicate_size: int | None = None,
    tp_size: int = 1,
    cp_size: int = 1,
) -> MeshSizes:
    """The mesh of ``world`` processes that these keys of ``distributed:`` ask for.

    ``dp_size`` counts all ranks with data of their own; left out, it takes what ``tp_size`` and ``cp_size`` leave.
    Under ddp all of them are replicas; under fsdp2 one copy of the model is spread over them, unless
    ``dp_replicate_size`` says how many copies there are.

    Raises:
        ConfigError: the sizes do not multiply to ``world``; the message lists what would.
    """
    model_parallel = tp_size * cp_size
    left, rest = divmod(world, model_parallel)
    if rest or (dp_size is not None and dp_size != left):
        raise _mismatch(world, dp_size, tp_size, cp_size)
    if strategy == "ddp":
        if dp_replicate_size not in (None, left):
            raise ConfigError(
                f"distributed.dp_replicate_size {dp_replicate_size} with strategy ddp, which copies the model to all "
                f"{left} data-parallel ranks",
                "leave dp_replicate_size out, or take strategy fsdp2",
            )
        return MeshSizes(dp_replicate=left, cp=cp_size, tp=tp_size)
    replicate = dp_replicate_size or 1
    if left % replicate:
        raise ConfigError(
            f"distributed.dp_replicate_size {replicate} does not divide the {left} data-parallel ranks",
            f"set it to one of {_divisors(left)}",
        )
    return MeshSizes(replicate, left // replicate, cp_size, tp_size)


def _mismatch(world: int, dp_size: int | None, tp_size: int, cp_size: int) -> ConfigError:
    sizes = {"dp_size": dp_size, "tp_size": tp_size, "cp_size": cp_size}
    shown = " x ".join(f"distributed.{name} {size}" for name, size in sizes.items() if size not in (None, 1))
    needed = plural((dp_size or 1) * tp_size * cp_size, "process", "processes")
    found = f"{shown} needs {'' if dp_size is not None else 'a multiple of '}{needed}"
    return ConfigError(
        f"{found}; this run has {plural(world, 'process', 'processes')}",
        f"what would fit: {_fitting(world, tp_size, cp_size)}; or start {_other_worlds(dp_size, tp_size * cp_size)}",
    )


def _fitting(world: int, tp_size: int, cp_size: int) -> str:
    """The meshes of ``world`` ranks nearest to what was asked, at most six."""
    found = [(world // (tp * cp), tp, cp) for tp in _divisors(world) for cp in _divisors(world // tp)]
    found.sort(key=lambda sizes: (abs(sizes[1] - tp_size) + abs(sizes[2] - cp_size), sizes[2], sizes[1]))
    return ", ".join(f"dp_size {dp} tp_size {tp} cp_size {cp}" for dp, tp, cp in found[:6])


def _other_worlds(dp_size: int | None, model_parallel: int) -> str:
    if dp_size is not None:
        return plural(dp_size * model_parallel, "process", "processes")
    return f"a multiple of {plural(model_parallel, 'process', 'processes')}"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
