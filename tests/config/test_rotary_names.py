"""transformers 4's names of rotary positions, which files of NeMo AutoModel carry, under transformers 5."""

import pytest
import torch
import transformers

from automodel_cli.config.targets.instantiate import check_target, instantiate
from automodel_cli.config.targets.target import Target

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def inv_freq(kind, **rope):
    """Of a model that a YAML section with these keys builds, float32 ``[rotated / 2]``."""
    config = instantiate(Target(f"transformers.{kind}", {**SIZES, **rope}), "hf_config")
    model = transformers.AutoModelForCausalLM.from_config(config)
    return next(buffer for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq"))


def formula(theta, rotated=16, factor=1.0):
    """transformers 4: ``_compute_default_rope_parameters``, divided by ``factor`` for linear scaling."""
    return 1.0 / theta ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated) / factor


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "MistralConfig", "Qwen3Config"])
def test_the_base_and_linear_scaling(kind):
    heads = {"head_dim": 16} if kind == "Qwen3Config" else {}
    torch.testing.assert_close(inv_freq(kind, rope_theta=5e5, rope_scaling=None, **heads), formula(5e5))
    scaling = {"type": "linear", "factor": 4.0}
    found = inv_freq(kind, rope_theta=1e6, rope_scaling=scaling, **heads)
    torch.testing.assert_close(found, formula(1e6, factor=4.0))


def test_names_of_single_families():
    rotated = inv_freq("PhiConfig", rope_theta=5e5, partial_rotary_factor=0.5)
    torch.testing.assert_close(rotated, formula(5e5, rotated=8))
    rotated = inv_freq("GPTNeoXConfig", rotary_emb_base=5e5, rotary_pct=0.5)
    torch.testing.assert_close(rotated, formula(5e5, rotated=8))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("GPTNeoXConfig", {"rope_theta": 5e5}),  # would be kept and never read
        ("GPT2Config", {"rope_theta": 5e5}),
        ("LlamaConfig", {"rotary_emb_base": 5e5}),
        ("LlamaConfig", {"rope_theta": "large"}),
        ("LlamaConfig", {"rope_scaling": 4}),
    ],
)
def test_names_without_a_meaning_and_wrong_kinds_are_refused(kind, arguments):
    (problem,) = check_target(Target(f"transformers.{kind}", arguments), "hf_config").problems
    assert next(iter(arguments)) in problem.key
