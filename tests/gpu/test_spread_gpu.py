"""FSDP2 on one GPU (a mesh of one place): the same losses as without it, and a checkpoint round trip.

Starts a process group with NCCL in this process; one GPU is enough.
"""

import os

import pytest
import torch
import torch.distributed as dist

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.distributed.grad_sync import DistributedGradSync
from automodel_cli.distributed.parallelize import ParallelConfig, shard_model
from automodel_cli.distributed.start import build_mesh
from automodel_cli.distributed.world import World
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB, TOKENS = 1000, 128


@pytest.fixture(scope="module")
def world():
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    device = torch.device("cuda", 0)
    yield World(0, 1, 0, device, build_mesh("cuda", {}), dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def build(world=None, spread=None):
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=128, n_layer=2, n_head=2, is_meta_device=True)
    if world is not None:
        shard_model(model, model.blocks(), world, spread or ParallelConfig())
    model.materialize("cuda", seed=0)
    return model, build_adamw(model.parameters(), lr=1e-3, device="cuda")


def batch():
    ids = torch.randint(0, VOCAB, (8, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).to("cuda")


def losses(model, optimizer, *, ranks=None, dtype=None, steps=5, loss=None):
    data = [batch()] * 2
    found = [
        train_step(model, loss or MaskedCrossEntropy(), optimizer, data, autocast_dtype=dtype, ranks=ranks)
        for _ in range(steps)
    ]
    return [(result.loss.item(), result.grad_norm.item()) for result in found]


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("loss", [MaskedCrossEntropy(), ChunkedCrossEntropy(chunk_tokens=300)])
def test_sharded_is_plain(world, dtype, tolerance, loss):
    expected = losses(*build(), dtype=dtype, loss=loss)
    model, optimizer = build(world, ParallelConfig(param_dtype=dtype))
    found = losses(model, optimizer, ranks=DistributedGradSync(world, model), dtype=dtype, loss=loss)
    for (ours, norm), (plain, plain_norm) in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=tolerance)
        assert norm == pytest.approx(plain_norm, rel=max(tolerance, 1e-3))


def test_an_update_waits_for_nothing(world):
    model, optimizer = build(world)
    ranks, data = DistributedGradSync(world, model), [batch()]
    train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16, ranks=ranks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16, ranks=ranks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_checkpoint_comes_back(world, tmp_path, is_async):
    model, optimizer = build(world)
    losses(model, optimizer, ranks=DistributedGradSync(world, model))
    checkpointer = Checkpointer(tmp_path, world=world, is_async=is_async)
    folder = checkpointer.save(
        5,
        model=model,
        optimizer=optimizer,
        state={},
        loader_state={},
        config_yaml="",
        facts={"model": model.model_config()},
    )
    checkpointer.wait()
    expected = losses(model, optimizer, ranks=DistributedGradSync(world, model))
    again, fresh = build(world)
    Checkpointer(tmp_path, world=world).load(folder, model=again, optimizer=fresh)
    assert losses(again, fresh, ranks=DistributedGradSync(world, again)) == expected
