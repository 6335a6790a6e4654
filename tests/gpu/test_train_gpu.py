"""Losses and the training step on a CUDA device, against the CPU."""

import pytest
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB, TOKENS = 1000, 128


def tiny(device):
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=128, n_layer=2, n_head=2, is_meta_device=True)
    model.materialize(device, seed=0)
    return model


def batch(device):
    ids = torch.randint(0, VOCAB, (8, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 1:].clone()
    labels[0, :50] = IGNORE_INDEX
    return Batch(ids[:, :-1].contiguous(), labels).to(device)


def losses(device, loss, *, dtype=None, compiled=False, steps=5):
    model = tiny(device)
    if compiled:
        model.compile(dynamic=False)
    optimizer = build_adamw(model.parameters(), lr=1e-3, device=device)
    data = [batch(device)] * 2
    return [train_step(model, loss, optimizer, data, autocast_dtype=dtype).loss.item() for _ in range(steps)]


def test_initial_weights_are_those_of_the_cpu():
    for name, parameter in tiny("cuda").named_parameters():
        assert torch.equal(parameter.cpu(), tiny("cpu").get_parameter(name)), name


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("loss", [MaskedCrossEntropy(), ChunkedCrossEntropy(chunk_tokens=300)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-4), (torch.bfloat16, 2e-2)])
def test_training_follows_the_cpu(loss, dtype, tolerance, compiled):
    expected = losses("cpu", MaskedCrossEntropy())
    assert losses("cuda", loss, dtype=dtype, compiled=compiled) == pytest.approx(expected, abs=tolerance)


def test_a_step_waits_for_nothing():
    model = tiny("cuda")
    optimizer = build_adamw(model.parameters(), lr=1e-3, device="cuda")
    data = [batch("cuda")]
    train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_chunks_save_the_memory_of_the_logits():
    hidden = torch.randn(4, 2048, 64, device="cuda", requires_grad=True)
    weight = torch.randn(32768, 64, device="cuda", requires_grad=True)
    labels = torch.randint(0, 32768, (4, 2048), device="cuda")
    peaks = []
    for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy(chunk_tokens=512)):
        torch.cuda.reset_peak_memory_stats()
        loss(hidden, weight, labels, vocab_size=32768).backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] / 4
