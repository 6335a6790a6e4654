"""The chunked operator: torch's own checks of custom operators, and the compiled form against the eager one."""

import pytest
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.chunked_nll import chunked_nll, nll_and_gradient
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy

VOCAB, PADDED = 100, 128


def arguments(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, 16, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCAB, (37,), generator=generator)
    labels[::5] = IGNORE_INDEX
    return hidden, weight, labels, VOCAB, 10, IGNORE_INDEX, True, False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_nothing_wrong_with_the_operator(dtype):
    torch.library.opcheck(chunked_nll, (*arguments(dtype), 1e-2))
    torch.library.opcheck(chunked_nll, (*arguments(dtype), 0.0, None, True, 2.0))


def test_logits_become_their_gradient():
    logits = torch.randn(6, PADDED, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 99, IGNORE_INDEX, 0, 7, 7])
    leaf = logits[:, :VOCAB].clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    expected.backward()
    nll = nll_and_gradient(logits, labels, VOCAB, IGNORE_INDEX)
    assert nll.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits[:, :VOCAB], leaf.grad, atol=1e-6, rtol=1e-5)
    assert logits[:, VOCAB:].abs().max() == 0


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_the_traced_form_is_the_eager_one(softcap):
    logits = torch.randn(6, PADDED, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 99, IGNORE_INDEX, 0, 7, 7])
    traced = logits.clone()
    compiled = torch.compile(nll_and_gradient, dynamic=False, backend="aot_eager")
    more = labels, VOCAB, IGNORE_INDEX, 1e-2, torch.arange(6.0), None, softcap
    assert compiled(traced, *more).item() == pytest.approx(nll_and_gradient(logits, *more).item(), rel=1e-6)
    torch.testing.assert_close(traced, logits, atol=1e-6, rtol=1e-5)


def test_a_second_backward_is_refused_or_right():
    hidden, weight, labels, *rest = arguments()
    nll = chunked_nll(hidden, weight, labels, *rest)[0]
    nll.backward(retain_graph=True)
    once = weight.grad.clone()
    nll.backward()
    torch.testing.assert_close(weight.grad, once * 2)


def compiled_step(loss, dtype):
    """nll and gradients of a traced tiny GPT-2. (What a compiler makes of it: promises/test_fast_paths.)"""
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    model.init_weights(0)
    model.compile(dynamic=False, backend="aot_eager")
    ids = torch.randint(0, VOCAB, (4, 16), generator=torch.Generator().manual_seed(2))
    labels = ids.roll(-1, 1)
    labels[0, :7] = IGNORE_INDEX
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        nll = model(Batch(ids, labels), head_loss=loss)
    nll.backward()
    return nll.detach(), model.wte.weight.grad, model.h[0].attn.c_attn.weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_inside_a_compiled_model_it_is_the_plain_loss(dtype, tolerance):
    """Two chunk sizes, the last chunk shorter; in bf16 to 1e-2 of the norms, the products have 8 bits."""
    plain = compiled_step(MaskedCrossEntropy(), dtype)
    chunked = compiled_step(ChunkedCrossEntropy(chunk_tokens=24), dtype)
    for found, expected in zip(chunked, plain, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
