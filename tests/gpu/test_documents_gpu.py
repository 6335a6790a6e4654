"""FlexAttention's kernels against dense masks: numbers, gradients, no new compilation, memory."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask

from automodel_cli.batch import Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.layers import shared as layers
from automodel_cli.models.layers.document_attention import (
    attend_blocks,
    block_mask,
    dense_mask,
    document_mask,
)
from automodel_cli.train.losses import ChunkedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB = 1000
BF16 = 2e-2  # eps is 8e-3; two kernels round sums of many products in another order


def segments(rows, tokens, seed=0, mean=200):
    begins = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < 1 / mean
    return begins.cumsum(1)


def relative(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(
    ("heads", "groups", "width", "tokens", "dtype", "tolerance"),
    [
        (4, 4, 64, 1024, torch.bfloat16, BF16),
        (8, 2, 128, 2048, torch.bfloat16, BF16),
        (3, 3, 48, 513, torch.bfloat16, BF16),
        (2, 1, 8, 129, torch.bfloat16, BF16),
        (4, 4, 64, 300, torch.float32, 5e-3),
    ],
)
def test_kernels_are_the_dense_mask(heads, groups, width, tokens, dtype, tolerance):
    """Outputs and gradients of queries, keys and values, as relative distances; in fp32 products may be TF32."""
    documents = segments(3, tokens).cuda()
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, heads, tokens, width), (3, groups, tokens, width), (3, groups, tokens, width)]
    leaves = [torch.randn(*size, generator=generator).to("cuda", dtype).requires_grad_() for size in sizes]
    upstream = torch.randn(*sizes[0], generator=generator).to("cuda", dtype)
    found = attend_blocks(*leaves, mask=block_mask(documents))
    gradients = torch.autograd.grad(found, leaves, upstream)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    whole = [exact[0], *(one.repeat_interleave(heads // groups, dim=1) for one in exact[1:])]
    expected = layers.attend_eager(*whole, mask=dense_mask(documents), dropout=0.0)
    assert found.dtype == dtype
    assert relative(found, expected) < tolerance
    for one, other in zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert relative(one, other) < tolerance


def tiny(device="cuda", tokens=512):
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=tokens, n_embd=128, n_layer=2, n_head=2)
    model.materialize(device, seed=0)
    return model


def batch(seed, tokens=512, mean=100):
    ids = torch.randint(0, VOCAB, (4, tokens + 1), generator=torch.Generator().manual_seed(seed))
    documents = segments(4, tokens, seed, mean)
    changes = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0
    count = torch.arange(tokens)
    positions = count - torch.where(changes, count, 0).cummax(dim=1).values
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions, documents)


def losses(model, device, *, dtype=None, steps=6, after_first=None):
    """Losses over updates on rows whose documents end elsewhere each time."""
    optimizer = build_adamw(model.parameters(), lr=1e-3, device=device)
    found = []
    for step in range(steps):
        data = [batch(2 * step).to(device), batch(2 * step + 1, mean=400).to(device)]
        found.append(train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=dtype))
        if step == 0 and after_first is not None:
            after_first()
    return [result.loss.item() for result in found]


def compiled_by(model, what):
    for part in {"model": [model], "blocks": model.blocks(), "attention": []}[what]:
        part.compile(dynamic=False)


@pytest.mark.parametrize(
    ("compiled", "how"),
    [
        ("model", None),
        ("model", "selective"),
        ("blocks", "full"),
        ("attention", None),
        ("attention", "selective"),
    ],
)
def test_training_follows_the_cpu_and_compiles_once(compiled, how):
    torch._dynamo.reset()
    counters.clear()
    expected = losses(tiny("cpu"), "cpu")
    model = tiny()
    if how is not None:
        for block in model.blocks():
            recompute(block, how, random=False)
    compiled_by(model, compiled)
    graphs = []
    found = losses(
        model,
        "cuda",
        dtype=torch.bfloat16,
        after_first=lambda: graphs.append(counters["stats"]["unique_graphs"]),
    )
    assert found == pytest.approx(expected, abs=BF16)
    assert counters["stats"]["unique_graphs"] == graphs[0]  # none for other documents
    assert not counters["graph_break"]


def test_the_mask_is_in_blocks_here():
    assert isinstance(document_mask(segments(2, 512).cuda()), BlockMask)
    assert isinstance(document_mask(segments(2, 512).cuda(), dropout=0.1), torch.Tensor)


@pytest.mark.parametrize("compiled", ["model", "attention"])
def test_a_step_waits_for_nothing(compiled):
    model = tiny()
    compiled_by(model, compiled)
    optimizer = build_adamw(model.parameters(), lr=1e-3, device="cuda")
    data = [batch(0).to("cuda")], [batch(1).to("cuda")]
    train_step(model, ChunkedCrossEntropy(), optimizer, data[0], autocast_dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, ChunkedCrossEntropy(), optimizer, data[1], autocast_dtype=torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_does_not_grow_with_the_square_of_the_row():
    """A dense bool mask alone would take T x T = 256 MiB, scores of two heads in bf16 1 GiB."""
    tokens = 16384
    documents = segments(1, tokens, mean=3000).cuda()
    leaves = [torch.randn(1, 2, tokens, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    attend_blocks(*leaves, mask=block_mask(documents)).sum().backward()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attend_blocks(*leaves, mask=block_mask(documents)).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 64 << 20


@pytest.mark.parametrize(
    ("family", "attention", "compiled"),
    [
        ("gpt2", "sdpa", False),
        ("llama", "sdpa", False),
        ("llama", "sdpa", True),
        ("llama", "flex_attention", False),
    ],
)
def test_transformers_models(family, attention, compiled):
    sizes = {
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
        "llama": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
    }[family]
    sizes |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {}
    config = transformers.AutoConfig.for_model(family, vocab_size=VOCAB, **sizes)
    reference = from_config(config)
    reference.materialize("cpu", seed=0)
    model = from_config(config, attn_implementation=attention)
    model.materialize("cuda", seed=0)
    if compiled:
        model.compile(dynamic=False)
    expected = losses(reference, "cpu", steps=3)
    assert losses(model, "cuda", dtype=torch.bfloat16, steps=3) == pytest.approx(expected, abs=BF16)
