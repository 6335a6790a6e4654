"""A tiny GPT-2 and its optimizer spread over ranks in every way there is: what the tests of checkpoints share.

Sub-worlds (the first two of four ranks, say) are made inside one spawn, so that many layouts cost one start.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.load_step import Loaded
from automodel_cli.distributed.world import MESH_AXES, World
from automodel_cli.models.gpt2 import build_gpt2_model

# name: (dp_replicate, dp_shard, tp), or "ddp" ranks that hold everything
LAYOUTS = {
    "one": (1, 1, 1),
    "ddp": (2, 1, 1),
    "fsdp2": (1, 2, 1),
    "fsdp3": (1, 3, 1),
    "fsdp4": (1, 4, 1),
    "hsdp": (2, 2, 1),
    "dp2_tp2": (1, 2, 2),
    "tp2": (1, 1, 2),
    "hsdp_tp": (2, 1, 2),
}
TP_PLAN = {
    "attn.c_attn": ColwiseParallel(),
    "attn.c_proj": RowwiseParallel(),
    "mlp.c_fc": ColwiseParallel(),
    "mlp.c_proj": RowwiseParallel(),
}

MANIFEST = {
    "format": "automodel-checkpoint/1", "step": 1, "save_format": "safetensors", "tied": {}, "metrics": {}, "facts": {}
}  # fmt: skip


def world_of(world: World, layout: str) -> World | None:
    """The world of a layout on the first of the ranks; None on a rank that has no part in it. All ranks call this."""
    replicate, shard, tp = LAYOUTS[layout]
    size = replicate * shard * tp
    assert size <= world.size, (layout, world.size)
    if size == 1:
        return World.single() if world.rank == 0 else None
    ranks = torch.arange(size).reshape(replicate, shard, 1, tp)
    mesh = DeviceMesh("cpu", ranks, mesh_dim_names=MESH_AXES)
    group = dist.new_group(list(range(size)), backend="gloo")
    return replace(world, size=size, mesh=mesh, cpu_group=group) if world.rank < size else None


def make(world: World, *, seed: int = 0, positions: int = 17) -> nn.Module:
    """A GPT-2 with 17 positions, which no number of ranks divides, spread as the world's mesh says."""
    model = build_gpt2_model(vocab_size=61, n_positions=positions, n_embd=24, n_layer=2, n_head=4)
    model.init_weights(seed)
    return spread(model, world)


def spread(model: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return model
    if world.axis_size("tp") > 1:
        for block in model.h:
            parallelize_module(block, world.mesh["tp"], TP_PLAN, src_data_rank=None)
    if world.axis_size("dp_shard") > 1 or world.axis_size("tp") > 1:
        mesh = world.mesh["dp_shard"]
        if world.axis_size("dp_replicate") > 1:
            mesh = DeviceMesh._concatenate([world.mesh["dp_replicate"], mesh])
        for block in model.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def optimizer_of(model: nn.Module, kind: str = "adamw") -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95))
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.Muon([parameter for parameter in model.parameters() if parameter.dim() == 2], lr=0.01)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int = 2, *, seed: int = 3) -> None:
    """Updates from gradients that are the same numbers however the model is spread."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        for parameter in model.parameters():
            whole = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.grad = whole
        optimizer.step()


def save(run: Path | str, world: World, model: nn.Module, optimizer, *, step: int = 2, options=None, **changes) -> Path:
    arguments = {
        "state": {"tokens_seen": 10 * step},
        "loader_state": {"samples_consumed": 4 * step},
        "config_yaml": "seed: 1\n",
        "facts": {"model": model.model_config(), "fast_path": {}, "param_roles": model.param_roles()},
        "metrics": {"loss": 1.0 / step},
    }
    checkpointer = Checkpointer(run, world=world, **(options or {}))
    path = checkpointer.save(step, model=model, optimizer=optimizer, **{**arguments, **changes})
    checkpointer.wait()
    return path


def load(path: Path | str, world: World, model: nn.Module, optimizer=None) -> Loaded:
    return Checkpointer(Path(path).parent, world=world).load(path, model=model, optimizer=optimizer)


def whole_state(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """Everything, put together, under names; all ranks of the model's world call this."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"model/{name}": value for name, value in model.state_dict().items()}
    for parameter, values in optimizer.state.items():
        state |= {f"{key}/{names[parameter]}": value for key, value in values.items()}
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one has, or whose values are not the same to the bit."""
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])
    )
