"""Llama on a CUDA device: the CPU's losses, eager and compiled; transformers' logits; every attention kernel."""

import pytest
import torch
import transformers

from automodel_cli.batch import Batch
from automodel_cli.models.hf import from_config
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.losses import MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny(device, **changes):
    model = build_llama_model(**SIZES, is_meta_device=True, **changes)
    model.materialize(device, seed=0)
    return model


def batch(device):
    ids = torch.randint(0, 1000, (4, 257), generator=torch.Generator().manual_seed(0))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).to(device)


def losses(device, *, dtype=None, compiled=False, **changes):
    model = tiny(device, **changes)
    if compiled:
        model.compile(dynamic=False, fullgraph=True)
    optimizer = build_adamw(model.parameters(), lr=1e-3, device=device)
    data = [batch(device)]
    loss = MaskedCrossEntropy()
    return [train_step(model, loss, optimizer, data, autocast_dtype=dtype).loss.item() for _ in range(5)]


@pytest.fixture(scope="module")
def on_cpu():
    return losses("cpu")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 2e-2)])
def test_training_follows_the_cpu(on_cpu, dtype, tolerance, compiled):
    assert losses("cuda", dtype=dtype, compiled=compiled) == pytest.approx(on_cpu, abs=tolerance)


@pytest.mark.parametrize("kernel", ["cudnn", "flash_attention_2", "eager", "matmul"])
def test_attention_kernels_agree(on_cpu, kernel):
    found = losses("cuda", dtype=torch.bfloat16, attn_implementation=kernel)
    assert found == pytest.approx(on_cpu, abs=2e-2)


def test_logits_and_gradients_are_those_of_transformers():
    ours = tiny("cuda")
    theirs = from_config(transformers.LlamaConfig(**SIZES)).to("cuda")
    parameters = dict(theirs.hf.named_parameters())
    with torch.no_grad():
        for name, there in ours.hf_tensors().items():
            parameters[there.name].copy_(ours.get_parameter(name)[: len(parameters[there.name])])
    data = batch("cuda")
    torch.testing.assert_close(ours(data), theirs(data), atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        model(data, head_loss=MaskedCrossEntropy()).div(1024).backward()
    for name, there in ours.hf_tensors().items():
        expected = parameters[there.name].grad
        torch.testing.assert_close(ours.get_parameter(name).grad[: len(expected)], expected, atol=1e-5, rtol=1e-4)


def test_a_step_waits_for_nothing():
    model = tiny("cuda")
    optimizer = build_adamw(model.parameters(), lr=1e-3, device="cuda")
    data, loss = [batch("cuda")], MaskedCrossEntropy()
    train_step(model, loss, optimizer, data, autocast_dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, loss, optimizer, data, autocast_dtype=torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
