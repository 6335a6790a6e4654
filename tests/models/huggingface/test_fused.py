"""Fused weights of transformers' classes: taken apart, they are the maps that the model computes with."""

import pytest
import transformers

from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.interface import MatrixLayout

GPT2 = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=30)
COMMON = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 30, "max_position_embeddings": 8, "pad_token_id": 0,
}  # fmt: skip


def layouts(model):
    return HFCausalLM(model).matrix_layouts()


def test_gpt2_lies_transposed_and_its_projections_are_three():
    found = layouts(transformers.GPT2LMHeadModel(GPT2))
    assert found == {
        "hf.transformer.h.0.attn.c_attn.weight": MatrixLayout((16, 16, 16), transposed=True),
        "hf.transformer.h.0.attn.c_proj.weight": MatrixLayout(transposed=True),
        "hf.transformer.h.0.mlp.c_fc.weight": MatrixLayout(transposed=True),
        "hf.transformer.h.0.mlp.c_proj.weight": MatrixLayout(transposed=True),
    }


def test_phi3_is_taken_apart_as_its_forward_does():
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**COMMON))
    attention = model.model.layers[0].self_attn
    found = layouts(model)
    projections = found["hf.model.layers.0.self_attn.qkv_proj.weight"].sizes
    assert projections == (16, 8, 8)
    assert projections[0] == attention.config.num_attention_heads * attention.head_dim
    assert projections[1] == attention.num_key_value_heads * attention.head_dim
    assert found["hf.model.layers.0.mlp.gate_up_proj.weight"].sizes == (24, 24)


def test_llama_has_a_weight_a_map():
    assert layouts(transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON))) == {}


@pytest.mark.parametrize("config", [GPT2, transformers.Phi3Config(**COMMON)])
def test_each_layout_names_a_matrix_and_adds_up(config):
    model = HFCausalLM(transformers.AutoModelForCausalLM.from_config(config))
    weights = dict(model.named_parameters())
    for name, layout in model.matrix_layouts().items():
        assert model.param_roles()[name] == "matrix"
        if layout.sizes:
            assert sum(layout.sizes) == weights[name].shape[1 if layout.transposed else 0]
