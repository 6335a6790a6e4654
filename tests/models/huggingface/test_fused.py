"""Fused weights of transformers' classes: taken apart, they are the maps that the model computes with."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.interface import MatrixLayout
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.losses import MaskedCrossEntropy
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_optimizer

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


def updated(model, batch):
    """The model after two updates of ``muon_adamw`` in fp32; AdamW makes nothing of gradients that are all rounding."""
    settings = {"lr": 0.1, "scalar_lr": 0.01, "scalar_eps": 1e-4, "weight_decay": 0.1, "normuon_beta2": 0.9}
    optimizer = build_optimizer(model, muon_adamw(**settings, orthogonalization_dtype="float32")(model))
    for _ in range(2):
        optimizer.zero_grad()
        model(batch, head_loss=MaskedCrossEntropy()).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_update_of_transformers_class_is_that_of_our_own(family, tmp_path):
    """Transposed and fused there, fused or apart here: the same linear maps, so the same weights afterwards."""
    ours = OURS[family]()
    ours.init_weights(0)
    theirs = HFCausalLM(transformers.AutoModelForCausalLM.from_pretrained(hf_export.save_hf(ours, tmp_path / "begin")))
    ids = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    before = {name: weight.clone() for name, weight in theirs.hf.state_dict().items()}
    updated(theirs, batch)
    wanted = load_file(hf_export.save_hf(updated(ours, batch), tmp_path / "end") / "model.safetensors")
    found = theirs.hf.state_dict()
    for name, weight in wanted.items():
        assert (found[name] - before[name]).abs().max() > 1e-4, name
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=1e-4, msg=name)


OURS = {
    "gpt2": lambda: build_gpt2_model(vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2),
    "llama": lambda: build_llama_model(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", [GPT2, transformers.Phi3Config(**COMMON)])
def test_each_layout_names_a_matrix_and_adds_up(config):
    model = HFCausalLM(transformers.AutoModelForCausalLM.from_config(config))
    weights = dict(model.named_parameters())
    for name, layout in model.matrix_layouts().items():
        assert model.param_roles()[name] == "matrix"
        if layout.sizes:
            assert sum(layout.sizes) == weights[name].shape[1 if layout.transposed else 0]
