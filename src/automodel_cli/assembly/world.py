"""The ``distributed:`` and ``dist_env:`` sections: the processes of a run, their mesh, the model over them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed import start
from automodel_cli.distributed.mesh import MeshSizes, plan_mesh
from automodel_cli.distributed.parallelize import ParallelConfig
from automodel_cli.distributed.tensor_parallel import check_plan
from automodel_cli.distributed.world import MESH_AXES, World
from automodel_cli.dtypes import autocast_dtype
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM
from automodel_cli.processes import own_rank


def mesh_sizes(cfg: PretrainConfig, world: int) -> MeshSizes:
    """The mesh that the ``distributed:`` section asks for, over ``world`` processes.

    Raises:
        ConfigError: the sizes do not multiply to ``world``, or ask for what there is not.
    """
    section = cfg.distributed
    for name, size in (("pp_size", section.pp_size), ("ep_size", section.ep_size)):
        if size > 1:
            raise ConfigError(
                f"distributed.{name} is {size}, and this version has no such parallelism",
                "set it to 1; dp, cp and tp can be combined",
            )
    if section.strategy == "none" and world > 1:
        raise ConfigError(
            f"distributed.strategy none trains in one process, and there are {world}",
            "take strategy fsdp2 or ddp, or start one process",
        )
    if section.strategy == "ddp" and section.tp_size > 1:
        raise ConfigError(
            f"distributed.strategy ddp with tp_size {section.tp_size}: DDP copies whole weights",
            "take strategy fsdp2; with dp_replicate_size it keeps copies as well",
        )
    return plan_mesh(
        world,
        strategy=section.strategy,
        dp_size=section.dp_size,
        dp_replicate_size=section.dp_replicate_size,
        tp_size=section.tp_size,
        cp_size=section.cp_size,
    )


def join(cfg: PretrainConfig) -> World:
    """Meet the other processes of this run, if a launcher started some.

    Raises:
        ConfigError: the mesh does not fit their number.
    """
    sizes = mesh_sizes(cfg, own_rank().size)
    device = this_machine.pick_device(cfg.device)
    if own_rank().size == 1:
        return World.single(device)
    backend = cfg.dist_backend if device.type == "cuda" else None
    return start.join(device.type, sizes=sizes, backend=backend)


def planned(cfg: PretrainConfig, processes: int | None = None) -> World:
    """The first of so many processes (None: as a launcher has started) of a run that is only planned.

    Raises:
        ConfigError: the mesh does not fit their number.
    """
    size, device = processes or own_rank().size, this_machine.pick_device(cfg.device)
    return World(rank=0, size=size, local_rank=0, device=device, planned=mesh_sizes(cfg, size))


def check_spread(cfg: PretrainConfig, model: CausalLM, world: World) -> None:
    """Check that ``model`` can be spread over the mesh; nothing is changed.

    Raises:
        ConfigError: its heads or matrices do not divide, or its attention cannot be reached.
    """
    tp, cp = world.axis_size("tp"), world.axis_size("cp")
    model.check_spread(tp=tp, cp=cp)
    if tp > 1:
        check_plan(model, plan_of(cfg, model), model.head_counts(), tp)


def plan_of(cfg: PretrainConfig, model: CausalLM) -> Mapping[str, str]:
    """Module name pattern -> tensor-parallel style: the section's, else the model's own."""
    return cfg.distributed.tp_plan or model.tp_plan()


def parallel_config(cfg: PretrainConfig, model: CausalLM, fast_path: FastPath) -> ParallelConfig:
    """How the model is spread over the ranks, as ``distributed:`` says."""
    section = cfg.distributed
    policy, offload = section.mp_policy, section.offload_policy
    return ParallelConfig(
        strategy="ddp" if section.strategy == "ddp" else "fsdp2",
        param_dtype=autocast_dtype(fast_path.precision),
        reduce_dtype=(policy and autocast_dtype(policy.reduce_dtype)) or torch.float32,
        recompute=cfg.distributed.recompute,
        prefetch=section.enable_fsdp2_prefetch,
        tp_plan=plan_of(cfg, model),
        reshard_after_forward=section.reshard_after_forward,
        offload=offload is not None,
        pin_memory=offload.pin_memory if offload else True,
        ddp={
            "broadcast_buffers": section.broadcast_buffers,
            "find_unused_parameters": section.find_unused_parameters,
            "static_graph": section.static_graph,
            "gradient_as_bucket_view": section.gradient_as_bucket_view,
            **({"bucket_cap_mb": section.bucket_cap_mb} if section.bucket_cap_mb else {}),
        },
    )


def rows(cfg: PretrainConfig, world: World) -> list[tuple[str, str]]:
    """How the model lies over the processes, in a line; none for one process."""
    if world.size == 1:
        return []
    section = cfg.distributed
    strategy = "ddp" if section.strategy == "ddp" else "fsdp2"
    sizes = " x ".join(f"{axis} {world.axis_size(axis)}" for axis in MESH_AXES if world.axis_size(axis) > 1)
    words = [f"{world.size}: {strategy}, {sizes}"]
    if recompute := cfg.distributed.recompute:
        words.append(f"activations computed again ({recompute})")
    if section.offload_policy is not None:
        words.append("weights kept in CPU memory")
    return [("processes", ", ".join(words))]


def notes(cfg: PretrainConfig, device_type: str) -> list[str]:
    """Lines on what the configuration asks for and a machine without GPUs does otherwise."""
    if cfg.dist_backend != "nccl" or device_type == "cuda":
        return []
    return ["dist_env.backend nccl needs GPUs; there are none here, so gloo is used instead"]
