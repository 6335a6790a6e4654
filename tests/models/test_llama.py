"""Llama: the same function as transformers', forward and backward; the documented initial values; the interface."""

import copy
import math

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models.families import build_from_config
from automodel_cli.models.interface import count_parameters
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.llama import rotate
from automodel_cli.models.llama import (
    build_llama_model,
)
from automodel_cli.models.llama_config import LlamaConfig
from automodel_cli.train.losses import MaskedCrossEntropy

TINY = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "grouped": {},
    "every head its own": {"num_key_value_heads": 4},
    "one key-value head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "other numbers": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3, "head_dim": 16},
    "long context": {"rope_scaling": SCALING},
    "no padding": {"vocab_size": 128},
}


def tiny(seed=0, **changes):
    model = build_llama_model(**{**TINY, **changes})
    model.init_weights(seed)
    return model


def tokens(rows=2, length=20, vocab=128):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def transformers_llama(**changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**copy.deepcopy({**TINY, **changes}))  # it writes into what it is given
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():  # away from the symmetric initial values
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path):
    """transformers' model and ours, with its weights by way of a folder."""
    theirs = transformers_llama(**VARIANTS[request.param])
    theirs.save_pretrained(tmp_path)
    return theirs, hf_format.load_model(tmp_path).eval()


def test_transformers_weights_give_transformers_numbers(pair):
    theirs, ours = pair
    ids, labels = tokens().split([19, 1], dim=1)[0], tokens()[:, 1:].clone()
    labels[0, :4] = -100
    outputs = theirs(ids, labels=labels, shift_labels=labels)
    torch.testing.assert_close(ours(Batch(ids)), outputs.logits, atol=1e-5, rtol=0)

    outputs.loss.backward()
    count = (labels != -100).sum()
    loss = ours(Batch(ids, labels), head_loss=MaskedCrossEntropy()) / count
    loss.backward()
    torch.testing.assert_close(loss, outputs.loss, atol=1e-6, rtol=0)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = {name: there.name for name, there in ours.hf_tensors().items()}
    assert set(names.values()) == set(expected)
    for name, parameter in ours.named_parameters():
        whole = expected[names[name]]
        torch.testing.assert_close(parameter.grad[: len(whole)], whole, atol=1e-5, rtol=1e-5, msg=name)
        assert parameter.grad[len(whole) :].abs().sum() == 0, "padding"


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_values_are_rounded_where_transformers_rounds_them(autocast):
    theirs = transformers_llama(attn_implementation="eager")
    ours = build_llama_model(**{**TINY, "attn_implementation": "eager"}).eval()
    hf = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, there in ours.hf_tensors().items():
            ours.get_parameter(name)[: len(hf[there.name])] = hf[there.name]
    if not autocast:
        theirs, ours = theirs.bfloat16(), ours.bfloat16()
        theirs.model.rotary_emb = modeling_llama.LlamaRotaryEmbedding(theirs.config)  # that one was rounded too
        assert ours.rotary_emb.inv_freq.dtype == torch.float32
    x = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(2))
    x = x if autocast else x.bfloat16()
    positions = torch.arange(20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        their_rotary = theirs.model.rotary_emb(x, positions[None])
        our_rotary = ours.rotary_emb(position_ids=positions, dtype=x.dtype)
        for mine, yours in zip(ours.layers, theirs.model.layers, strict=True):
            assert torch.equal(mine.input_layernorm(x), yours.input_layernorm(x))
            assert torch.equal(mine.mlp(x), yours.mlp(x))
            q = yours.self_attn.q_proj(x).view(2, 20, 4, 12)
            rotated, _ = modeling_llama.apply_rotary_pos_emb(q, q, *their_rotary, unsqueeze_dim=2)
            assert torch.equal(rotate(q, our_rotary), rotated.to(torch.bfloat16))


def test_exported_weights_are_the_same_bytes_and_give_the_same_logits(tmp_path):
    for number, changes in enumerate(VARIANTS.values()):
        ours = tiny(eos_token_id=[3, 7], **changes).eval()
        folder = hf_export.save_hf(ours, tmp_path / str(number))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert isinstance(theirs, transformers.LlamaForCausalLM)
        assert theirs.config.eos_token_id == [3, 7]
        state = theirs.state_dict()
        for name, there in ours.hf_tensors().items():
            assert torch.equal(state[there.name], there.values(ours.get_parameter(name)))
        with torch.no_grad():
            torch.testing.assert_close(theirs(tokens()).logits, ours(Batch(tokens())), atol=1e-5, rtol=0)

        theirs.save_pretrained(tmp_path / f"{number} back")
        again = hf_format.load_model(tmp_path / f"{number} back")
        assert again.model_config() == ours.model_config()
        for name, parameter in ours.named_parameters():
            assert torch.equal(again.get_parameter(name), parameter)


def test_initial_values_have_the_documented_deviations():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8}
    for changes in ({}, {"initializer_range": 0.05}, {"scale_residual_init": True}):
        model = tiny(**sizes, **changes)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                assert (parameter == 1).all()
                continue
            expected = changes.get("initializer_range", 0.02)
            if "scale_residual_init" in changes and name.endswith(("o_proj.weight", "down_proj.weight")):
                expected /= math.sqrt(16)
            real = parameter[:131] if name in ("embed_tokens.weight", "lm_head.weight") else parameter
            assert real.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(real.mean().item()) < 4 * expected / math.sqrt(real.numel())
        for table in (model.embed_tokens, model.lm_head):
            assert table.weight.shape[0] == 256
            assert table.weight[131:].abs().max() == 0


def test_initial_values_depend_on_seed_and_name_only():
    one, other = tiny(seed=5), tiny(seed=6)
    torch.manual_seed(99)
    meta = build_llama_model(**TINY, is_meta_device=True)
    assert all(parameter.is_meta for parameter in meta.parameters())
    meta.materialize("cpu", seed=5)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, meta.get_parameter(name))
    assert torch.equal(meta.rotary_emb.inv_freq, one.rotary_emb.inv_freq)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    deeper = tiny(seed=5, num_hidden_layers=4)
    assert torch.equal(deeper.layers[1].mlp.up_proj.weight, one.layers[1].mlp.up_proj.weight)
    assert not torch.equal(one.layers[0].mlp.up_proj.weight, one.layers[1].mlp.up_proj.weight)


def test_positions_are_no_part_of_a_file_and_right_wherever_the_model_is():
    model = tiny()
    expected = model.rotary_emb.inv_freq.clone()
    assert not [name for name in model.state_dict() if "rotary" in name]
    for moved in (model.bfloat16(), model.to(torch.float64), model.float(), model.to_empty(device="cpu")):
        assert moved.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(moved.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "matmul", "flash_attention_2", "cudnn"])
def test_segments_do_not_see_each_other(implementation):
    model = tiny(attn_implementation=implementation).eval()
    first, second = tokens(1, 8), tokens(1, 12)
    packed = Batch(
        torch.cat([first, second], 1),
        position_ids=torch.cat([torch.arange(8), torch.arange(12)])[None],
        segment_ids=torch.tensor([[0] * 8 + [1] * 12]),
    )
    with torch.no_grad():
        alone = torch.cat([model(Batch(first)), model(Batch(second))], 1)
        torch.testing.assert_close(model(packed), alone, atol=1e-5, rtol=1e-5)
        without_positions = model(Batch(packed.input_ids, segment_ids=packed.segment_ids))
    # Rotary positions are relative: a document that begins later in its row has the same logits.
    torch.testing.assert_close(without_positions, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["auto", "eager", "matmul"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_decoding_gives_the_logits_of_a_full_forward(kv_heads, implementation):
    model = tiny(num_key_value_heads=kv_heads, attn_implementation=implementation).eval()
    ids, cache = tokens(2, 16), KVCache()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        full = model(Batch(ids))
        pieces = [model(Batch(piece), cache=cache) for piece in ids.split([1, 5, 1, 1, 6, 2], dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_as_one_graph(autocast):
    model = tiny()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = Batch(tokens(), tokens(), segment_ids=torch.arange(20).expand(2, 20) // 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = compiled(batch, head_loss=MaskedCrossEntropy())
        found.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        expected = model(batch, head_loss=MaskedCrossEntropy())
        expected.backward()
    tolerance = {"atol": 0.2, "rtol": 0.05} if autocast else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found, expected, **tolerance)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, **tolerance)


def test_the_residual_stream_in_bf16_is_near_the_one_in_fp32():
    batch = Batch(tokens(), tokens())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        exact = tiny()(batch, head_loss=MaskedCrossEntropy())
        model = tiny()
        seen: list[torch.dtype] = []
        for block in model.blocks():
            block.register_forward_hook(lambda block, inputs, output: seen.append(output.dtype))
        model.keep_residual_in(torch.bfloat16)
        near = model(batch, head_loss=MaskedCrossEntropy())
    assert seen == [torch.bfloat16] * 3
    assert near != exact and near == pytest.approx(exact.item(), rel=1e-3)


def test_attention_is_changed_where_key_value_heads_are_few():
    """What context parallel gathers is not yet repeated for the query heads."""
    model, seen = tiny().eval(), []

    def change(attend):
        def watched(queries, keys, values, **options):
            seen.append((queries.shape[1], keys.shape[1], values.shape[1]))
            return attend(queries, keys, values, **options)

        return watched

    with torch.no_grad():
        expected = model(Batch(tokens()))
        model.change_attention(change)
        assert torch.equal(model(Batch(tokens())), expected)
    assert seen == [(4, 2, 2)] * 3


def test_a_preferred_kernel_gives_the_same_logits():
    model, ids = tiny().eval(), tokens()
    assert model.attention_shape() == (4, 12)
    assert tiny(attn_implementation="eager").attention_shape() is None
    with torch.no_grad():
        expected = model(Batch(ids))
        model.prefer_attention("math")
        torch.testing.assert_close(model(Batch(ids)), expected, atol=1e-5, rtol=1e-5)
        cache = KVCache()
        pieces = [model(Batch(piece), cache=cache) for piece in ids.split([18, 1, 1], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-5, rtol=1e-5)


def test_counts_are_those_of_llama_2():
    """Touvron et al. 2023: 6.7 and 13.0 billion; the exact figures are those of the released tensors."""
    small = build_llama_model(is_meta_device=True)
    assert sum(count_parameters(small).values()) == 6_738_415_616
    large = build_llama_model(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        is_meta_device=True,
    )
    assert sum(count_parameters(large).values()) == 13_015_864_320


def test_too_long_a_sequence_is_an_error():
    with pytest.raises(ConfigError, match="max_position_embeddings 32"):
        tiny()(Batch(tokens(1, 33)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": 50}, "hidden_size 50 is not divisible by num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
        ({"head_dim": 7}, "head of 7"),
        ({"hidden_size": 4}, "head of 1"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "of the kind 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "without low_freq_factor"),
        ({"rope_scaling": {**SCALING, "rope_theta": 5e5}}, "with rope_theta"),
        ({"eos_token_id": [1, 131]}, "eos_token_id 131"),
        ({"attn_implementation": "xformers"}, "xformers"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        build_llama_model(**{**TINY, **changes})


def test_a_model_is_rebuilt_from_its_configuration():
    model = tiny(rope_scaling=SCALING, tie_word_embeddings=True, eos_token_id=3, scale_residual_init=True)
    config = model.model_config()
    assert next(iter(config)) == "family"
    again = build_from_config(config)
    assert again.model_config() == config
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_roles_and_names_cover_every_parameter():
    for tied in (False, True):
        model = tiny(tie_word_embeddings=tied)
        names = {name for name, _ in model.named_parameters()}
        assert set(model.param_roles()) == set(model.hf_tensors()) == names
        assert ("head" in model.param_roles().values()) == (not tied)
    assert not model.has_dropout() and len(model.blocks()) == 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "'linear'"),
    ],
)
def test_a_configuration_we_cannot_express_goes_to_transformers(tmp_path, changes, named):
    theirs = transformers_llama(**changes)
    with pytest.raises(CheckpointError, match=named):
        LlamaConfig.from_hf(theirs.config.to_dict())
    theirs.save_pretrained(tmp_path)
    loaded = hf_format.load_model(tmp_path).eval()
    assert type(loaded).__name__ == "HFCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(loaded(Batch(tokens())), theirs(tokens()).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaling", [None, {"type": "llama3", **{k: SCALING[k] for k in list(SCALING)[1:]}}])
def test_both_spellings_of_the_positions(scaling):
    """transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters."""
    old = LlamaConfig.from_hf({**TINY, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": scaling})
    expected = None if scaling is None else SCALING
    assert (old["rope_theta"], old["rope_scaling"]) == (5e5, expected)
    new = {"rope_theta": 5e5, **(expected or {"rope_type": "default"})}
    assert LlamaConfig.from_hf({**TINY, "model_type": "llama", "rope_parameters": new}) == old
