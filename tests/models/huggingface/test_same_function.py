"""Weights of equal shapes that were trained as another function are told from those of the same one."""

import pytest
import transformers

from automodel_cli.models import hf
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.huggingface.same_function import differences, differences_from_hf
from automodel_cli.models.llama import build_llama_model

GPT2 = {"vocab_size": 64, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = {**LLAMA3, "original_max_position_embeddings": 8}


def gpt2(**changes):
    return build_gpt2_model(**{**GPT2, **changes}, is_meta_device=True)


def llama(**changes):
    return build_llama_model(**{**LLAMA, **changes}, is_meta_device=True)


def theirs(kind="Llama", **changes):
    return hf.from_config(getattr(transformers, f"{kind}Config")(**{**LLAMA, **changes}), is_meta_device=True)


def their_gpt2(**changes):
    return hf.from_config(transformers.GPT2Config(**{**GPT2, **changes}), is_meta_device=True)


CASES = [
    (gpt2, gpt2(n_head=3), "n_head is 2 here and 3 there"),
    (gpt2, gpt2(activation="gelu"), "activation is gelu_tanh here and gelu there"),
    (llama, llama(num_attention_heads=2, num_key_value_heads=1, head_dim=6), "num_attention_heads"),
    (llama, llama(rope_theta=5e5), "rope_theta is 10000.0 here and 500000.0 there"),
    (llama, llama(rms_norm_eps=1e-5), "rms_norm_eps"),
    (llama, llama(rope_scaling=SCALED), "rope_scaling"),
    (llama, llama(num_hidden_layers=3), "num_hidden_layers is 2 here and 3 there"),
    (theirs, theirs(rope_theta=5e5), "rope_parameters"),
    (theirs, theirs(rms_norm_eps=1e-5), "rms_norm_eps"),
    (theirs, theirs(hidden_act="gelu"), "hidden_act is silu here and gelu there"),
    (theirs, theirs("Mistral"), "MistralForCausalLM"),
    (their_gpt2, their_gpt2(activation_function="gelu"), "activation_function"),
    (their_gpt2, their_gpt2(layer_norm_epsilon=1e-6), "layer_norm_epsilon"),
    (their_gpt2, their_gpt2(scale_attn_weights=False), "scale_attn_weights"),
    (gpt2, llama(), "family is gpt2 here and llama there"),
    (theirs, llama(), "family is hf here and llama there"),
]


@pytest.mark.parametrize(("make", "stored", "named"), CASES)
def test_another_function_is_named(make, stored, named):
    assert any(named in line for line in differences(stored.model_config(), make()))


@pytest.mark.parametrize(("make", "stored", "named"), CASES[:-2])
def test_another_function_in_a_config_json_is_named(make, stored, named):
    config = stored.hf.config.to_dict() if isinstance(stored, hf.HFCausalLM) else stored.hf_config()
    found = differences_from_hf(config, make())
    assert any(named.partition(" is ")[0] in line or "model_type" in line for line in found)


@pytest.mark.parametrize(
    ("model", "stored"),
    [
        (gpt2(), gpt2(dropout=0.1, eos_token_id=5, n_positions=16, attn_implementation="eager")),
        (llama(), llama(max_position_embeddings=99, eos_token_id=5, initializer_range=0.1)),
        (
            theirs(),
            theirs(max_position_embeddings=99, eos_token_id=5, attention_dropout=0.5, use_cache=False),
        ),
        (their_gpt2(), their_gpt2(resid_pdrop=0.3, activation_function="gelu_pytorch_tanh")),
    ],
)
def test_what_is_no_part_of_the_function_may_differ(model, stored):
    assert differences(stored.model_config(), model) == []
    config = stored.hf.config.to_dict() if isinstance(stored, hf.HFCausalLM) else stored.hf_config()
    assert differences_from_hf({**config, "n_ctx": 16, "task_specific_params": {"a": 1}}, model) == []


@pytest.mark.parametrize("scaled", [False, True])
def test_both_spellings_of_rotary_positions_are_one(scaled):
    def rope(theta):
        return {"rope_theta": theta, "rope_scaling": dict(SCALED) if scaled else None}

    old = {**LLAMA, "model_type": "llama", **rope(5e5)}
    assert differences_from_hf(old, theirs(**rope(5e5))) == []
    assert differences_from_hf(old, llama(**rope(5e5))) == []
    assert differences_from_hf(old, theirs(**rope(1e4))) != []
    assert old == {**LLAMA, "model_type": "llama", **rope(5e5)}
