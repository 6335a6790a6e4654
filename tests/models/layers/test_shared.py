"""Attention: every way to attend against the formula, masks, gradients."""

import math

import pytest
import torch

from automodel_cli.errors import ConfigError
from automodel_cli.models.layers.shared import (
    ATTENDS,
    CausalSelfAttention,
    additive_mask,
    attend_by_name,
    attend_sdpa,
    attention_mask,
)

CPU = torch.device("cpu")


def formula(queries, keys, values, allowed):
    """softmax(Q K^T / sqrt(K)) V in float64."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ values


def tensors(dtype=torch.float32, tokens=12):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3))


@pytest.mark.parametrize("name", sorted(ATTENDS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("segmented", [False, True])
def test_every_way_to_attend_is_the_formula(name, dtype, tolerance, segmented):
    queries, keys, values = tensors(dtype)
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 12]) if segmented else None
    mask = attention_mask(tokens=12, cached=0, segment_ids=segments, device=CPU)
    allowed = torch.ones(12, 12, dtype=torch.bool).tril() if mask is None else mask
    output = attend_by_name(name)(queries, keys, values, mask=mask, dropout=0.0)
    assert output.dtype == dtype
    assert (output.double() - formula(queries, keys, values, allowed)).abs().max() < tolerance


def test_gradients_of_matrix_products_are_sdpas():
    gradients = []
    for name in ("matmul", "sdpa"):
        leaves = [tensor.requires_grad_() for tensor in tensors()]
        attend_by_name(name)(*leaves, mask=None, dropout=0.0).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_masks():
    assert attention_mask(tokens=4, cached=0, segment_ids=None, device=CPU) is None
    one = attention_mask(tokens=1, cached=3, segment_ids=None, device=CPU)
    assert one.shape == (1, 1, 1, 4)
    assert one.all()
    later = attention_mask(tokens=2, cached=3, segment_ids=None, device=CPU)
    assert later[0, 0].tolist() == [[True, True, True, True, False], [True] * 5]
    segmented = attention_mask(tokens=3, cached=0, segment_ids=torch.tensor([[0, 1, 1]]), device=CPU)
    assert segmented[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    added = additive_mask(None, like=torch.zeros(1), tokens=2)
    assert added[0, 0].tolist() == [[0.0, float("-inf")], [0.0, 0.0]]


def test_dropout_of_attention_follows_the_mode():
    torch.manual_seed(0)
    layer = CausalSelfAttention(16, 2, layer=0, bias=True, dropout=0.5, attend=attend_sdpa)
    seen = []
    layer.attend = lambda *tensors, mask, dropout: (
        seen.append(dropout) or attend_sdpa(*tensors, mask=mask, dropout=dropout)
    )
    x = torch.randn(1, 4, 16)
    layer.train()(x)
    layer.eval()(x)
    assert seen == [0.5, 0.0]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        attend_by_name("flush")
    assert "flash_attention_2" in caught.value.hint and "cudnn" in caught.value.hint
