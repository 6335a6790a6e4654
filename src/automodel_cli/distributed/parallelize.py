"""A model parallelized over a mesh.

Order: tensor and context parallel (each rank its tokens and its part of the matrices), activation checkpointing of
each block, then FSDP of each block and of what is left, on the meta device; or DDP, once the weights are there.
Weights come after this (``CausalLM.materialize``): no rank ever holds a whole model that is sharded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from automodel_cli.batch import Batch
from automodel_cli.distributed.context_parallel import SequenceSharder
from automodel_cli.distributed.grad_sync import DistributedGradSync, GradSync
from automodel_cli.distributed.param_views import view_parameters
from automodel_cli.distributed.recompute import recompute
from automodel_cli.distributed.tensor_parallel import TensorParallel, rotary_positions
from automodel_cli.distributed.world import World


@dataclass(frozen=True)
class ParallelConfig:
    """How a model lies over the ranks."""

    strategy: str = "fsdp2"  # fsdp2 or ddp
    param_dtype: torch.dtype | None = None  # compute dtype of the blocks' weights; None: as stored
    reduce_dtype: torch.dtype | None = torch.float32  # gradients are summed over ranks in this
    # Full or selective: compute activations again in the backward pass; None: keep them
    recompute: str | None = None
    prefetch: bool = False  # gather the weights of more blocks ahead than torch does by itself
    # Module name pattern -> style, where ranks share matrices
    tp_plan: Mapping[str, str] = field(default_factory=dict)
    # Free a block's gathered weights after its forward pass; None: all but the last block's
    reshard_after_forward: bool | None = None
    offload: bool = False  # keep weights and optimizer state in CPU memory; ``pin_memory`` or None for no
    pin_memory: bool = True
    ddp: dict[str, Any] = field(default_factory=dict)  # keywords of ``DistributedDataParallel``


class ParallelModel:
    """A model (a ``CausalLM``, which says what its blocks, roles, heads and attention are) over the ranks of a world.

    In one process it is the model.

    Attributes:
        train_module: what is called in training; names, saving and evaluation stay with ``model``.
        grad_sync: what an update agrees on with other ranks.
    """

    def __init__(self, model: nn.Module, world: World, config: ParallelConfig) -> None:
        self.model, self.world, self.config = model, world, config
        self.train_module: nn.Module = model
        self.grad_sync = GradSync()
        self.sharder = SequenceSharder(world)
        self.has_views = world.axis_size("tp") > 1
        self.divides_tokens = self.sharder.cp * self.sharder.tp > 1
        self._parallelize(cast(Any, model))

    def _parallelize(self, model: Any) -> None:
        """Everything that comes before the weights."""
        blocks = model.blocks()
        if self.divides_tokens:
            model.change_attention(self.sharder.attending)
            self.sharder.follow(model)
            rotary_positions(model, self.sharder)
        if self.sharder.tp > 1:
            TensorParallel(self.world, self.config.tp_plan, model.head_counts()).apply(model, blocks)
        sharded = self.world.size > 1 and self.config.strategy != "ddp"
        if sharded and self.config.param_dtype is not None and self.world.device.type == "cpu":
            _keep_norms_whole(model, blocks)
            self.has_views = True
        if self.config.recompute is not None:
            for block in blocks:
                recompute(block, self.config.recompute, random=model.has_dropout())
        if sharded:
            shard_model(model, blocks, self.world, self.config)

    def wrap_for_training(self) -> None:
        """Once the weights are there: what is left to do before the first update."""
        if self.world.size > 1:
            if self.config.strategy == "ddp":
                self.train_module = replicate_model(self.model, self.world, self.config)
            self.grad_sync = DistributedGradSync(self.world, self.train_module)

    def to_compile(self, scope: str) -> list[nn.Module]:
        """What ``torch.compile`` is applied to: the ``model``, or its ``blocks``.

        Blocks in any case where hooks between them talk to other ranks; nothing where parameters are shown to layers
        as something else: the compiler cannot follow that.
        """
        if self.world.size == 1 and scope == "model":
            return [self.model]
        return [] if self.has_views else cast(Any, self.model).blocks()

    def shard_batch(self, batch: Batch) -> Batch:
        """What of a batch that several ranks share is this one's."""
        return self.sharder.shard_batch(batch) if self.divides_tokens else batch


def data_mesh(world: World) -> DeviceMesh:
    """The mesh over which weights are sharded: all ranks with tokens of their own, replicas in front.

    One axis, or two (replicas, shards) for hybrid sharding.
    """
    assert world.mesh is not None
    shard = world.mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
    if world.axis_size("dp_replicate") == 1:
        return shard
    return DeviceMesh._concatenate([world.mesh["dp_replicate"], shard])


def shard_model(model: nn.Module, blocks: list[nn.Module], world: World, config: ParallelConfig) -> None:
    """Apply FSDP to each block and to what is left; in place, names of parameters stay.

    What is left (embeddings, last norm, head) computes in its stored dtype: it is the residual stream's beginning
    and end, and with autocast the numbers are then those of one process.
    """
    mesh = data_mesh(world)
    offload = CPUOffloadPolicy(pin_memory=config.pin_memory) if config.offload else OffloadPolicy()
    options: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
    inner = MixedPrecisionPolicy(
        param_dtype=config.param_dtype, reduce_dtype=config.reduce_dtype, cast_forward_inputs=False
    )
    outer = MixedPrecisionPolicy(reduce_dtype=config.reduce_dtype, cast_forward_inputs=False)
    for block in blocks:
        reshard = config.reshard_after_forward
        reshard = block is not blocks[-1] if reshard is None else reshard
        fully_shard(block, mp_policy=inner, reshard_after_forward=reshard, **options)
    fully_shard(model, mp_policy=outer, reshard_after_forward=False, **options)
    if config.prefetch:
        _prefetch(cast(list[FSDPModule], blocks))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums: the loss is divided by the global count already
            module.set_force_sum_reduction_for_comms(True)


def reshard(model: nn.Module) -> None:
    """Let FSDP gather weights anew in the next forward pass; it may have kept those of the last one."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _keep_norms_whole(model: Any, blocks: list[nn.Module]) -> None:
    """Show norms their weights in fp32, the dtype of what they normalise; a CPU kernel refuses to mix."""
    norms = [name for name, role in model.param_roles().items() if role == "norm"]
    names = {id(module): name for name, module in model.named_modules()}
    for block in blocks:
        prefix = f"{names[id(block)]}."
        own = [name.removeprefix(prefix) for name in norms if name.startswith(prefix)]
        view_parameters(block, dict.fromkeys(own, torch.Tensor.float))


def _prefetch(blocks: list[FSDPModule]) -> None:
    """Gather one block ahead in the forward pass, two in the backward pass."""
    for index, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 2])
        block.set_modules_to_backward_prefetch(blocks[max(index - 2, 0) : index][::-1])


def replicate_model(model: nn.Module, world: World, config: ParallelConfig) -> DistributedDataParallel:
    """``model`` in DDP; call the result, keep everything else with ``model``, whose names stay."""
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    options = dict(config.ddp)
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:  # torch 2.13's name
        options["forward_sync_buffers"] = options.pop("broadcast_buffers", False)
    return DistributedDataParallel(model, device_ids=device_ids, **options)
