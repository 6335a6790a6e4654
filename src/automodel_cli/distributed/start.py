"""The start of a process as one of several: the process group, the mesh, the time limits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import astuple
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_cli.distributed.mesh import MeshSizes, fill_mesh
from automodel_cli.distributed.world import MESH_AXES, World
from automodel_cli.processes import own_rank

SETUP_TIMEOUT = timedelta(minutes=60)
"""Building, loading and compiling may take one rank much longer than another; afterwards the configured one holds."""

_FIRST_PORT, _PORTS = 20_000, 10_000  # of jobs whose launcher names none


def rendezvous(environ: Mapping[str, str]) -> str:
    """``tcp://host:port`` of rank 0 under srun, which names the machines and not the port."""
    host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    port = environ.get("MASTER_PORT") or str(_FIRST_PORT + int(environ.get("SLURM_JOB_ID", "0")) % _PORTS)
    return f"tcp://{host}:{port}"


def first_host(node_list: str) -> str:
    """The first machine of Slurm's short form: ``gpu[003-007,9],login1`` is gpu003."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", node_list)
    assert match, f"{node_list!r} is no list of machines"
    return match.group(1) + (match.group(2) or "") + match.group(3)


def join(
    device_type: str,
    *,
    sizes: MeshSizes | Mapping[str, int] | None = None,
    backend: str | None = None,
    timeout: timedelta = SETUP_TIMEOUT,
) -> World:
    """Meet the other processes and form the mesh; one process is ``World.single``.

    Args:
        device_type: ``cuda`` or ``cpu``; each process takes the device of its local rank.
        sizes: of the mesh; what is missing goes to ``dp_shard``.
        backend: nccl or gloo for tensors on the device; None: nccl with GPUs. Tensors on the CPU take gloo.
        timeout: how long a rank waits for another; see ``set_timeouts``.
    """
    here = own_rank()
    device = torch.device(device_type, here.local_rank) if device_type == "cuda" else torch.device(device_type)
    if here.size == 1:
        return World.single(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        f"cpu:gloo,cuda:{backend or 'nccl'}" if device.type == "cuda" else "gloo",
        init_method="env://" if here.launcher == "torchrun" else rendezvous(os.environ),
        rank=here.rank,
        world_size=here.size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return World(
        rank=here.rank,
        size=here.size,
        local_rank=here.local_rank,
        device=device,
        mesh=build_mesh(device.type, sizes or {}),
        cpu_group=dist.new_group(backend="gloo", timeout=timeout),
    )


def build_mesh(device_type: str, sizes: MeshSizes | Mapping[str, int]) -> DeviceMesh:
    """All ranks over ``MESH_AXES``; a missing ``dp_shard`` takes what the other sizes leave."""
    full = sizes if isinstance(sizes, MeshSizes) else fill_mesh(dist.get_world_size(), sizes)
    return init_device_mesh(device_type, astuple(full), mesh_dim_names=MESH_AXES)


def set_timeouts(world: World, timeout: timedelta) -> None:
    """From here on a rank waits this long for another, in every group there is."""
    if world.cpu_group is None:
        return
    world.barrier()
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def leave(world: World) -> None:
    """End the process group, once every rank is here."""
    if world.cpu_group is not None:
        world.barrier()
        dist.destroy_process_group()
