"""The same update on any mesh: against one process, with one gradient given to all."""

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from automodel_cli.distributed.grad_sync import local
from automodel_cli.distributed.parallelize import ParallelConfig, ParallelModel
from automodel_cli.distributed.world import World
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.muon.optimizer import MuonAdamW

SIZES = {"vocab_size": 50, "n_positions": 8, "n_embd": 24, "n_layer": 3, "n_head": 2}


def model():
    return build_gpt2_model(**SIZES)


def optimizer_of(model, mesh=None, **settings):
    roles, layouts = model.param_roles(), model.matrix_layouts()
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if roles[name] == "matrix"]
    others = [p for name, p in named.items() if roles[name] != "matrix"]
    groups = [
        {"params": matrices, "rule": "muon", "lr": 0.02, "weight_decay": 0.1},
        {"params": others, "rule": "adamw", "lr": 0.003},
    ]
    by_parameter = {named[name]: layout for name, layout in layouts.items()}
    return MuonAdamW(groups, layouts=by_parameter, mesh=mesh, **settings)


def give_gradients(model, step):
    """The same whole gradient wherever the parameters lie."""
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * step + number)
        whole = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            from torch.distributed.tensor import distribute_tensor

            like = parameter
            whole = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        parameter.grad = whole


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def updates(world, strategy, settings, steps=3):
    """Norms that tell all weights after some updates, and how many elements of state this rank keeps."""
    net = model()
    tp_plan = net.tp_plan() if world.axis_size("tp") > 1 else {}
    spread = ParallelModel(net, world, ParallelConfig(strategy=strategy, tp_plan=tp_plan))
    net.materialize("cpu", seed=0)
    mesh = None
    if strategy == "ddp" and world.size > 1:
        mesh = init_device_mesh("cpu", (world.size,))
    optimizer = optimizer_of(net, mesh, **settings)
    del spread
    for step in range(steps):
        give_gradients(net, step)
        optimizer.step()
    weights = {name: whole(p.detach()).flatten().tolist() for name, p in net.named_parameters()}
    state = sum(local(value).numel() for s in optimizer.state.values() for value in s.values())
    return [weights, state]


EXACT = {"dtype": "float32", "beta2": 0.95, "cautious": True, "momentum_start": 0.85, "momentum_warmup": 2}


@pytest.fixture(scope="module")
def alone():
    return updates(World.single(), "fsdp2", EXACT)


@pytest.mark.parametrize(
    ("ranks", "strategy", "mesh"),
    [
        (2, "ddp", {}),
        (3, "ddp", {}),
        (2, "fsdp2", {}),
        (4, "fsdp2", {"dp_replicate": 2}),
        (4, "fsdp2", {"tp": 2}),
    ],
)
def test_any_mesh_gives_the_weights_of_one_process(alone, ranks, strategy, mesh):
    results = run_ranks(ranks, updates, strategy, EXACT, mesh=mesh)
    for weights, _ in results:
        for name, expected in alone[0].items():
            torch.testing.assert_close(
                torch.tensor(weights[name]),
                torch.tensor(expected),
                rtol=1e-4,
                atol=1e-6,
                msg=lambda m: f"{name}: {m}",
            )
    print(alone[1], [state for _, state in results])
