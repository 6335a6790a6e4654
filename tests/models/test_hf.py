"""Hugging Face models: built from configuration objects, never downloaded."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from tests.effort import BACKEND

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.families import build_from_config, shape_of
from automodel_cli.models.hf import from_config, from_pretrained, wrap
from automodel_cli.models.huggingface.model import DIRECT_HEADS, cache_argument
from automodel_cli.models.interface import count_parameters
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.sizing.shape import flops_per_token
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy

VOCAB = 97
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
MAIN = ["gpt2", "llama", "qwen2"]


def config_of(model_type, **changes):
    sizes = {**(GPT2_SIZES if model_type == "gpt2" else LLAMA_SIZES), **changes}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.AutoConfig.for_model(model_type, vocab_size=VOCAB, **tokens, **sizes)


def tiny(model_type, seed=0, **changes):
    model = from_config(config_of(model_type, **changes))
    model.init_weights(seed)
    return model.eval()


def batch(rows=2, length=20):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


@pytest.mark.parametrize("model_type", sorted(DIRECT_HEADS))
def test_a_listed_head_is_exactly_one_matrix_product(model_type):
    model, data = tiny(model_type), batch()
    assert model.direct_head
    with torch.no_grad():
        hidden_path = model(data, head_loss=MaskedCrossEntropy())
        expected = MaskedCrossEntropy().from_logits(model.hf(data.input_ids).logits, data.labels)
    assert hidden_path.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "phi"])
def test_other_heads_go_through_whole_logits(model_type):
    changes = {"head_dim": 8} if model_type == "gemma2" else {}
    model, data = tiny(model_type, **{k: v for k, v in changes.items() if k not in LLAMA_SIZES}), batch()
    assert not model.direct_head
    assert any("whole logits" in note for note in model.notes)
    with torch.no_grad():
        expected = MaskedCrossEntropy().from_logits(model.hf(data.input_ids).logits, data.labels)
        for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy()):
            assert model(data, head_loss=loss).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("model_type", MAIN)
def test_gradients_reach_every_parameter(model_type):
    model, data = tiny(model_type).train(), batch()
    model(data, head_loss=ChunkedCrossEntropy(chunk_tokens=16)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("bias"), name


@pytest.mark.parametrize("model_type", MAIN)
def test_initial_values_depend_on_seed_and_name_only(model_type):
    one = tiny(model_type, seed=3)
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    other = from_config(config_of(model_type), is_meta_device=True)
    assert all(parameter.is_meta for parameter in other.parameters())
    other.materialize("cpu", seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for (name, left), (_, right) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(left, right), name
    with torch.no_grad():
        assert torch.equal(one(batch()), other.eval()(batch()))
    assert any(
        not torch.equal(left, right)
        for left, right in zip(one.parameters(), tiny(model_type, seed=4).parameters(), strict=True)
    )


@pytest.mark.parametrize("model_type", [*MAIN, "gemma"])
def test_buffers_are_those_of_a_model_built_the_ordinary_way(model_type):
    """Rotary frequencies are buffers that no checkpoint holds: off the meta device they must be computed anew."""
    ordinary = dict(transformers.AutoModelForCausalLM.from_config(config_of(model_type)).named_buffers())
    ours = dict(tiny(model_type).hf.named_buffers())
    assert ours.keys() == ordinary.keys()
    for name, buffer in ordinary.items():
        assert torch.equal(ours[name], buffer), name


def test_initial_deviations_follow_the_families_own_rules():
    model = from_config(config_of("gpt2", n_inner=None))
    model.init_weights(0)
    state = model.hf.state_dict()
    assert state["transformer.h.0.attn.c_attn.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    residual = state["transformer.h.0.attn.c_proj.weight"]
    assert residual.std().item() == pytest.approx(0.02 / 2, rel=0.1)  # 1 / sqrt(2 x 2 layers)
    assert (state["transformer.ln_f.weight"] == 1).all()


@pytest.mark.parametrize("model_type", MAIN)
def test_a_model_is_rebuilt_from_its_configuration(model_type):
    model = tiny(model_type)
    config = model.model_config()
    again = build_from_config(config)
    assert again.model_config() == config
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(batch()), model(batch()))


@pytest.mark.parametrize("model_type", MAIN)
def test_a_saved_folder_is_loaded_with_the_same_logits(model_type, tmp_path):
    model = tiny(model_type)
    model.hf.save_pretrained(tmp_path)
    again = from_pretrained(str(tmp_path)).eval()
    assert again.pretrained
    with torch.no_grad():
        torch.testing.assert_close(again(batch()), model(batch()))


def test_overrides_of_from_pretrained_reach_the_configuration(tmp_path):
    tiny("gpt2").hf.save_pretrained(tmp_path)
    assert from_pretrained(str(tmp_path), attn_pdrop=0.2).hf.config.attn_pdrop == 0.2
    with pytest.raises(ConfigError, match="atn_pdrop"):
        from_pretrained(str(tmp_path), atn_pdrop=0.2)


@pytest.mark.parametrize("model_type", MAIN)
def test_segments_do_not_see_each_other(model_type):
    model, first, second = tiny(model_type), batch(1, 8).input_ids, batch(1, 12).input_ids
    packed = Batch(
        torch.cat([first, second], 1),
        position_ids=torch.cat([torch.arange(8), torch.arange(12)])[None],
        segment_ids=torch.tensor([[0] * 8 + [1] * 12]),
    )
    with torch.no_grad():
        alone = torch.cat([model(Batch(first)), model(Batch(second))], 1)
        torch.testing.assert_close(model(packed), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", MAIN)
def test_cached_decoding_gives_the_logits_of_a_full_forward(model_type):
    model, ids, cache = tiny(model_type), batch(2, 12).input_ids, KVCache()
    with torch.no_grad():
        full = model(Batch(ids))
        pieces = [model(Batch(piece), cache=cache) for piece in ids.split([5, 1, 1, 5], dim=1)]
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", MAIN)
def test_training_fills_no_cache(model_type):
    """Under recomputation a cache would be filled twice."""
    model, outputs = tiny(model_type), []
    model.hf.base_model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(batch(1, 4))
    assert not {"cache", "past_key_values"} & {name for name, value in outputs[0].items() if value is not None}


def test_the_cache_is_known_by_the_name_that_the_version_of_transformers_gives_it():
    now = SimpleNamespace(forward=lambda input_ids, cache=None: None)  # since 5.24
    before = SimpleNamespace(forward=lambda input_ids, past_key_values=None: None)
    assert (cache_argument(now), cache_argument(before)) == ("cache", "past_key_values")


def test_weights_are_stored_in_fp32_whatever_the_configuration_says():
    config = config_of("llama")
    config.dtype = torch.bfloat16
    assert from_config(config).hf.dtype == torch.float32
    assert from_config(config, torch_dtype="auto").hf.dtype == torch.float32
    half = from_config(config, torch_dtype="bfloat16")
    assert half.hf.dtype == torch.bfloat16
    assert any("no fp32 master copy" in note for note in half.notes)
    with pytest.raises(ConfigError, match="int8"):
        from_config(config, torch_dtype="int8")
    built_elsewhere = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    wrapped = wrap(built_elsewhere)
    assert wrapped.hf.dtype == torch.float32
    assert any("stored in torch.float32" in note for note in wrapped.notes)


def test_dropout_of_the_configuration_is_pointed_out():
    loud = from_config(config_of("gpt2"))  # transformers' GPT-2 default is 0.1
    assert any("dropout" in note and "attn_pdrop 0.1" in note for note in loud.notes)
    assert loud.has_dropout()
    quiet = from_config(config_of("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
    assert quiet.notes == []
    assert not quiet.has_dropout()


def test_roles_counts_and_shape():
    tied, untied = tiny("gpt2"), tiny("llama")
    assert "head" not in tied.param_roles().values()
    roles = untied.param_roles()
    assert roles["hf.lm_head.weight"] == "head"
    assert roles["hf.model.layers.0.input_layernorm.weight"] == "norm"
    assert roles["hf.model.embed_tokens.weight"] == "embedding"
    assert tied.param_roles()["hf.transformer.wpe.weight"] == "position"
    for model in (tied, untied):
        stored = sum(parameter.numel() for parameter in model.parameters())
        assert sum(count_parameters(model).values()) == stored
        assert shape_of(model.model_config()).stored_params == stored
    without_table = sum(p.numel() for p in untied.parameters()) - VOCAB * 32
    assert flops_per_token(untied.shape(), 16) == 6 * without_table + 12 * 2 * 16 * 32
    without_positions = sum(p.numel() for p in tied.parameters()) - 64 * 32
    assert flops_per_token(tied.shape(), 16) == 6 * without_positions + 12 * 2 * 16 * 32


def test_names_are_those_of_a_saved_folder():
    model = tiny("qwen2")
    assert {there.name for there in model.hf_tensors().values()} <= set(model.hf.state_dict())


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no-such-org/no-such-model-name"])
def test_a_model_that_cannot_be_found_is_one_clear_error(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="cannot build a causal language model") as caught:
        from_pretrained(name)
    assert "hub name that this machine can reach" in caught.value.hint


def test_a_configuration_of_something_else_is_refused():
    with pytest.raises(ConfigError, match="ViTConfig"):
        from_config(transformers.ViTConfig())


def test_compiled_training_matches_eager():
    data = batch()
    losses = []
    for compiled in (False, True):
        model = tiny("llama", num_hidden_layers=1).train()
        if compiled:
            model.compile(dynamic=False, backend=BACKEND)
        loss = model(data, head_loss=ChunkedCrossEntropy(chunk_tokens=16))
        loss.backward()
        losses.append((loss.detach(), model.hf.lm_head.weight.grad))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_liger_where_it_is_not_installed_is_a_note():
    model = from_config(config_of("llama"), use_liger_kernel=True)
    assert any("liger-kernel is not installed" in note for note in model.notes)


def masks_when_compiled(model, batch):
    """What attention gets as a mask in the compiled model, and the logits."""
    masks = []

    def look(graph, inputs):
        masks.extend(node.kwargs.get("attn_mask") for node in graph.graph.nodes if "scaled_dot" in str(node.target))
        return graph

    torch._dynamo.reset()
    return masks, torch.compile(model, backend=look, fullgraph=True, dynamic=False)(batch)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_compiled_attention_gets_no_mask_that_a_flash_kernel_would_refuse(model_type):
    model = tiny(model_type).eval()
    rows = batch()
    masks, logits = masks_when_compiled(model, rows)
    assert masks and all(mask is None for mask in masks)
    torch.testing.assert_close(logits, model.hf(input_ids=rows.input_ids).logits, atol=1e-5, rtol=1e-5)


def test_a_window_narrower_than_the_rows_keeps_its_mask():
    model = tiny("mistral", sliding_window=8).eval()
    rows = batch()
    masks, logits = masks_when_compiled(model, rows)
    assert all(mask is not None for mask in masks)
    torch.testing.assert_close(logits, model.hf(input_ids=rows.input_ids).logits, atol=1e-5, rtol=1e-5)


def test_the_residual_stream_of_a_listed_family_can_be_kept_in_bf16():
    model = tiny("llama").eval()
    assert model.takes_residual_dtype
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(batch()).float()
        model.keep_residual_in(torch.bfloat16)
        seen = []
        model.blocks()[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
        found = model(batch()).float()
    block = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert block.dtype == torch.bfloat16
    assert (found - expected).norm() <= 3e-2 * expected.norm()


STATES = {
    "Mamba": {"state_size": 8},
    "Mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "Jamba": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "Rwkv": {},
}


@pytest.mark.parametrize("kind", STATES)
def test_models_that_keep_states_are_stored_and_speak(kind):
    """Plain JSON (Mamba2 has an infinite limit), the same model from it, and transformers' own continuations."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, bos_token_id=0, eos_token_id=0, **STATES[kind])
    model = from_config(config)
    model.init_weights(0)
    again = build_from_config(json.loads(json.dumps(model.model_config(), allow_nan=False)))
    again.load_state_dict(model.state_dict())
    assert again.model_config() == model.model_config()
    prompts = [[9, 8, 7, 6, 5, 4, 3], [5, 6, 7]] if again.takes_cache else [[5, 6, 7]]
    found = generate(again, prompts, SamplingSettings(8, temperature=0, num_samples=2))
    for prompt, samples in zip(prompts, found, strict=True):
        expected = model.hf.eval().generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert [sample.ids for sample in samples] == [expected[0, len(prompt) :].tolist()] * 2
