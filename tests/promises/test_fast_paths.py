"""A hundred losses with every fast path on are those of the plain loop: eager, whole logits, AdamW tensor by tensor.

The model has rows of padding in its head, labels to ignore, and learns: a wrong gradient would show after few updates.
"""

import pytest
import torch
from tests.effort import without_contained

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

VOCAB, ROWS, TOKENS, UPDATES = 100, 4, 32, 100


def gpt2():
    return build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=32, n_layer=1, n_head=2)


def llama():
    return build_llama_model(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TOKENS,
    )


def updates():
    """Each token is the last one plus 0, 1 or 2; the first labels of a row do not count."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(UPDATES):
        steps = torch.randint(0, 3, (ROWS, TOKENS + 1), generator=generator)
        tokens = steps.cumsum(1) % VOCAB
        labels = tokens[:, 1:].clone()
        labels[0, :5] = IGNORE_INDEX
        yield [Batch(tokens[:, :-1].contiguous(), labels)]


def curve(build, *, fast, dtype=None, residual=None):
    """Loss and gradient norm of each update, ``[100, 2]``."""
    model = build()
    model.init_weights(0)
    loss = ChunkedCrossEntropy(chunk_tokens=48) if fast else MaskedCrossEntropy()
    optimizer = build_adamw(model.parameters(), lr=3e-3, foreach=None if fast else False, fused=fast)
    if fast:
        model.prefer_attention("flash")
        model.compile(dynamic=False)
        loss.fused = True
    if residual is not None:
        model.keep_residual_in(residual)
    results = [train_step(model, loss, optimizer, one, autocast_dtype=dtype) for one in updates()]
    return torch.stack([torch.stack([result.loss, result.grad_norm]) for result in results])


# Compiling takes most of the time; in a push each model is compiled once, in another dtype.
FP32 = without_contained({"gpt2": gpt2, "llama": llama}, ["llama"])
BF16 = without_contained(
    {
        "gpt2": (gpt2, None),
        "gpt2, bf16 stream": (gpt2, torch.bfloat16),
        "llama": (llama, None),
        "llama, bf16 stream": (llama, torch.bfloat16),
    },
    ["gpt2", "gpt2, bf16 stream", "llama"],
)


@pytest.mark.parametrize("build", FP32.values(), ids=FP32)
def test_in_fp32_to_1e_5(build):
    plain, fast = curve(build, fast=False), curve(build, fast=True)
    assert plain[0, 0] - plain[-1, 0] > 1.5
    torch.testing.assert_close(fast[:10], plain[:10], atol=1e-5, rtol=1e-5)
    assert (fast - plain)[:, 0].abs().max() < 1e-4  # a hundred updates enlarge last bits


@pytest.mark.parametrize(("build", "residual"), BF16.values(), ids=BF16)
def test_in_bf16_within_what_bf16_does(build, residual):
    """Against fp32: losses within 5e-3 nats in the mean, single ones within 5e-2."""
    apart = curve(build, fast=True, dtype=torch.bfloat16, residual=residual)[:, 0] - curve(build, fast=False)[:, 0]
    assert apart.mean().abs() < 5e-3
    assert apart.abs().max() < 5e-2
