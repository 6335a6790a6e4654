"""Sizes from arithmetic against sizes of real modules."""

import pytest
import transformers

from automodel_cli.models.families import shape_of
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.interface import count_parameters
from automodel_cli.models.llama import build_llama_model
from automodel_cli.sizing.shape import flops_per_token, padded_vocab

GPT2_FAMILY = {  # published sizes
    (12, 12, 768): 124_439_808,
    (24, 16, 1024): 354_823_168,
    (36, 20, 1280): 774_030_080,
    (48, 25, 1600): 1_557_611_200,
}


@pytest.mark.parametrize(("sizes", "published"), GPT2_FAMILY.items())
def test_the_gpt2_family_has_its_published_sizes(sizes, published):
    layers, heads, width = sizes
    model = build_gpt2_model(n_layer=layers, n_head=heads, n_embd=width, is_meta_device=True)
    assert sum(model.config.parameters().values()) == published


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocab_size", [65, 128, 50257])
def test_parts_sum_to_what_is_stored(vocab_size, bias):
    model = build_gpt2_model(vocab_size=vocab_size, n_layer=3, n_head=2, n_embd=64, bias=bias, is_meta_device=True)
    stored = sum(parameter.numel() for parameter in model.parameters())
    by_role = {role: number for role, number in model.config.parameters().items() if number}
    assert shape_of(model.model_config()) == model.shape()
    assert model.shape().stored_params == stored
    assert by_role == count_parameters(model)


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [65, 128])
@pytest.mark.parametrize("head_dim", [None, 32])
def test_parts_of_a_llama_sum_to_what_is_stored(vocab_size, tied, head_dim):
    sizes = {**LLAMA, "vocab_size": vocab_size, "tie_word_embeddings": tied, "head_dim": head_dim}
    model = build_llama_model(**sizes, is_meta_device=True)
    stored = sum(parameter.numel() for parameter in model.parameters())
    by_role = {role: number for role, number in model.config.parameters().items() if number}
    assert shape_of(model.model_config()) == model.shape()
    assert model.shape().stored_params == stored
    assert by_role == count_parameters(model)
    theirs = from_config(transformers.LlamaConfig(**sizes), is_meta_device=True)
    assert flops_per_token(model.shape(), 256) == flops_per_token(theirs.shape(), 256)


def test_padding_is_to_128():
    assert [padded_vocab(size) for size in (1, 128, 129, 50257)] == [128, 128, 256, 50304]


def test_flops_of_gpt2_small_are_nanogpts_figure():
    """6 x 123,653,376 (all but positions) + 12 x 12 layers x 1024 x 768 = about 0.855 GFLOP a token."""
    shape = build_gpt2_model(is_meta_device=True).shape()
    assert flops_per_token(shape, 1024) == 6 * 123_653_376 + 12 * 12 * 1024 * 768 == 855_166_464


def test_an_unknown_family_has_no_figures():
    assert flops_per_token(shape_of({"family": "foreign"}), 128) is None
