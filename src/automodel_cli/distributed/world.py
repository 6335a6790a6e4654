"""The processes of a run as one of them sees them: who it is, the mesh they form, and how they agree on small things.

One process is a world too (``World.single``): every method works there without ``torch.distributed``, so that the
callers need no second path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_cli.distributed.mesh import MeshSizes

MESH_AXES = ("dp_replicate", "dp_shard", "cp", "tp")
"""Outermost first: ranks of a tensor-parallel group are neighbours, replicas are far apart."""


@dataclass(frozen=True)
class World:
    """One process among those of a run."""

    rank: int  # rank, size: this process among all of them
    size: int
    local_rank: int  # among those of its machine
    device: torch.device  # where its tensors live
    # All ranks over ``MESH_AXES`` (every axis is there, those of size 1 too); None in one process
    mesh: DeviceMesh | None = None
    # Gloo over all ranks, for flags and JSON: it never waits for the device. None in one process.
    cpu_group: dist.ProcessGroup | None = None
    # The mesh of a run that is only planned: sizes are its, and what one process says all of them say
    planned: MeshSizes | None = None

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        """The world of a run in one process."""
        return cls(rank=0, size=1, local_rank=0, device=torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks, writes logs and publishes."""
        return self.rank == 0

    def axis_size(self, axis: str) -> int:
        """Number of ranks along one of ``MESH_AXES``."""
        if self.mesh is None:
            return getattr(self.planned, axis, 1)
        return self.mesh[axis].size()

    def axis_rank(self, axis: str) -> int:
        """This process's rank along one of ``MESH_AXES``."""
        return 0 if self.mesh is None else self.mesh[axis].get_local_rank()

    @property
    def dp_world(self) -> int:
        """How many different parts of a batch there are: replicas times shards (cp and tp peers share theirs)."""
        return self.axis_size("dp_replicate") * self.axis_size("dp_shard")

    @property
    def dp_rank(self) -> int:
        """Which part of a batch is this process's."""
        return self.axis_rank("dp_replicate") * self.axis_size("dp_shard") + self.axis_rank("dp_shard")

    def flat_mesh(self) -> DeviceMesh | None:
        """All ranks in one row; None in one process."""
        return None if self.mesh is None else init_device_mesh(self.device.type, (self.size,))

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; every rank calls it and gets the same answer."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """Which of several ``flags`` are set on any rank, in one exchange."""
        if self.cpu_group is None:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.cpu_group)
        return [bool(flag) for flag in raised.tolist()]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` (on the CPU) summed over all ranks, in place."""
        if self.cpu_group is not None:
            dist.all_reduce(tensor, group=self.cpu_group)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (JSON), in rank order, on every rank. JSON, so that nothing is unpickled."""
        if self.cpu_group is None:
            return [value] * self.size
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)]), group=self.cpu_group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, padded, group=self.cpu_group)
        return [json.loads(bytes(text[: int(size)].numpy())) for text, size in zip(texts, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (JSON) on every rank; what the others pass is not looked at."""
        return self.gather(value if self.is_main else None)[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.cpu_group is not None:
            dist.barrier(group=self.cpu_group)
