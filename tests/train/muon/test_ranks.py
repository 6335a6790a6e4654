"""The same update on any mesh: against one process, with the same gradient for all."""

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from automodel_cli.distributed.grad_sync import local
from automodel_cli.distributed.parallelize import ParallelConfig, ParallelModel
from automodel_cli.distributed.world import World
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.muon.optimizer import MuonAdamW

SIZES = {"vocab_size": 50, "n_positions": 8, "n_embd": 24, "n_layer": 3, "n_head": 2}
SETTINGS = {"beta2": 0.95, "cautious": True, "momentum_start": 0.85, "momentum_warmup": 2}


def optimizer_of(model, mesh, dtype):
    roles, named = model.param_roles(), dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if (roles[name] == "matrix") == muon], **settings}
        for muon, settings in (
            (True, {"rule": "muon", "lr": 0.02, "weight_decay": 0.1}),
            (False, {"rule": "adamw", "lr": 0.003}),
        )
    ]
    layouts = {named[name]: layout for name, layout in model.matrix_layouts().items()}
    return MuonAdamW(groups, layouts=layouts, mesh=mesh, dtype=dtype, **SETTINGS)


def give_gradients(parameters, step):
    """The same whole gradient wherever the parameters lie."""
    for number, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            gradient = distribute_tensor(gradient, mesh, placements, src_data_rank=None)
        parameter.grad = gradient


def elements_kept(optimizer):
    return sum(local(value).numel() for state in optimizer.state.values() for value in state.values())


def updates(world, strategy, dtype):
    """All weights after some updates, and how many elements of state this rank keeps."""
    model = build_gpt2_model(**SIZES)
    tp_plan = model.tp_plan() if world.axis_size("tp") > 1 else {}
    ParallelModel(model, world, ParallelConfig(strategy=strategy, tp_plan=tp_plan))
    model.materialize("cpu", seed=0)
    mesh = init_device_mesh("cpu", (world.size,)) if strategy == "ddp" else None
    optimizer = optimizer_of(model, mesh, dtype)
    for step in range(3):
        give_gradients(model.parameters(), step)
        optimizer.step()
    weights = [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]
    return [torch.cat([weight.flatten() for weight in weights]).tolist(), elements_kept(optimizer)]


@pytest.fixture(scope="module")
def alone():
    return {dtype: updates(World.single(), "fsdp2", dtype) for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize(
    ("ranks", "strategy", "mesh", "dtype", "share"),
    [
        (3, "ddp", {}, "float32", 0.37),  # rows of 24 and 50 over three
        (2, "fsdp2", {}, "bfloat16", 0.52),
        (4, "fsdp2", {"dp_replicate": 2}, "float32", 0.52),  # replicas keep the same state
        (4, "fsdp2", {"tp": 2}, "float32", 0.29),  # what tensor parallelism copies is kept twice
    ],
)
def test_any_mesh_gives_the_weights_of_one_process(alone, ranks, strategy, mesh, dtype, share):
    expected, kept_alone = alone[dtype]
    for weights, kept in run_ranks(ranks, updates, strategy, dtype, mesh=mesh):
        torch.testing.assert_close(torch.tensor(weights), torch.tensor(expected), rtol=1e-4, atol=1e-6)
        assert kept < share * kept_alone


def few_matrices(world):
    """Two matrices and a vector of two elements for more ranks than that."""
    sizes = ((4, 6), (6, 4), (2,))
    weights = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    mesh = init_device_mesh("cpu", (world.size,)) if world.size > 1 else None
    groups = [{"params": weights[:2], "beta2": 0.9}, {"params": weights[2:], "rule": "adamw"}]
    optimizer = MuonAdamW(groups, lr=0.1, dtype="float32", mesh=mesh)
    give_gradients(weights, 0)
    optimizer.step()
    return [weight.detach().flatten().tolist() for weight in weights]


def test_ranks_that_own_nothing_take_part():
    for weights in run_ranks(4, few_matrices):
        for found, expected in zip(weights, few_matrices(World.single()), strict=True):
            assert found == pytest.approx(expected, rel=1e-5)
