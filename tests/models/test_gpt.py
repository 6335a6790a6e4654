"""The GPT with options: transformers' numbers where it has the function, the documented initial values, and for each
option the promises of the interface: sizes, cached decoding, documents kept apart, training."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.evaluation.span_scores import SpanHead
from automodel_cli.generation.decoders import LastLogits
from automodel_cli.models.families import build_from_config, shape_of
from automodel_cli.models.gpt import build_gpt_model
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.gpt_config import GPTConfig
from automodel_cli.models.interface import count_parameters
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.serving.rows import LogitsAt
from automodel_cli.sizing.shape import flops_per_token
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.row_losses import ByRow

TINY = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA = {
    "rope_reversed": False,
    "norm_gain": True,
    "embedding_norm": False,
    "qk_norm": False,
    "activation": "swiglu",
    "softcap": 0.0,
}
NANOCHAT = {
    "modern": {},
    "no softcap": {"softcap": 0.0},
    "tied": {"tie_word_embeddings": True, "rope_theta": 1e5, "norm_eps": 1e-3},
    "every head its own": {"num_key_value_heads": 4, "vocab_size": 128, "intermediate_size": 80},
}
LLAMAS = {
    "llama": LLAMA,
    "llama with biases": {**LLAMA, "bias": True},
    "tied llama": {**LLAMA, "tie_word_embeddings": True, "head_dim": 16, "rope_theta": 5e5},
}
WITHOUT_FORMAT = {
    "gpt2": {"preset": "gpt2"},
    "windows": {"window_pattern": "SSSL", "short_window": 5},
    "value embeddings": {"value_embeddings": True},
    "residual scalars": {"residual_scalars": True},
    "all at once": {
        "value_embeddings": True,
        "residual_scalars": True,
        "window_pattern": "SL",
        "short_window": 3,
        "tie_word_embeddings": True,
        "qk_norm_gain": True,
        "norm_gain": True,
        "bias": True,
    },
    "layer norms without weights": {"norm": "layernorm", "activation": "gelu", "head_dim": 16},
}
ALL = {**NANOCHAT, **LLAMAS, **WITHOUT_FORMAT}
every_option = pytest.mark.parametrize("changes", ALL.values(), ids=ALL)


def tiny(seed=0, **changes):
    model = build_gpt_model(**{**TINY, **changes})
    model.init_weights(seed)
    return model


def noisy(**changes):
    """Far from the symmetric initial values, some of which are zero."""
    model = tiny(**changes)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def tokens(rows=2, length=20, vocab=128):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------ Hugging Face's format


@pytest.mark.parametrize("name", [*NANOCHAT, *LLAMAS])
def test_exported_weights_give_transformers_the_same_logits_and_come_back(name, tmp_path):
    ours = noisy(eos_token_id=3, **ALL[name])
    folder = hf_export.save_hf(ours, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    kind = transformers.NanoChatForCausalLM if name in NANOCHAT else transformers.LlamaForCausalLM
    assert isinstance(theirs, kind)
    again = tiny(seed=5, **ALL[name]).eval()
    hf_format.load_into(again, folder)
    with torch.no_grad():
        expected = theirs(tokens()).logits
        torch.testing.assert_close(ours(Batch(tokens())), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(again(Batch(tokens())), expected, atol=1e-5, rtol=0)
    for parameter, loaded in zip(ours.parameters(), again.parameters(), strict=True):
        rows = 131 if len(loaded) == 256 else None
        assert torch.equal(parameter[:rows], loaded[:rows])


@pytest.mark.parametrize("changes", [{}, {"final_logit_softcapping": None}, {"tie_word_embeddings": True}])
def test_transformers_nanochat_gives_its_numbers_and_gradients(changes, tmp_path):
    sizes = {**TINY, "intermediate_size": 80, "pad_token_id": None, **changes}
    torch.manual_seed(0)
    theirs = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**sizes)).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path)
    ours = hf_format.load_model(tmp_path).eval()
    assert ours.config.preset == "modern" and ours.config.rope_reversed
    outputs = theirs(tokens(), labels=tokens(), shift_labels=tokens())
    torch.testing.assert_close(ours(Batch(tokens())), outputs.logits, atol=1e-5, rtol=0)

    outputs.loss.backward()
    (ours(Batch(tokens(), tokens()), head_loss=ChunkedCrossEntropy()) / 40).backward()
    there = dict(theirs.named_parameters())
    for name, target in ours.hf_tensors().items():
        whole = there[target.name].grad
        torch.testing.assert_close(ours.get_parameter(name).grad[: len(whole)], whole, atol=1e-5, rtol=1e-4, msg=name)


def test_the_direction_of_rotation_and_the_place_of_the_softcap_matter():
    """Else the tests above would not notice them."""
    model, other = noisy(), noisy()
    other.config.rope_reversed = False
    with torch.no_grad():
        assert (model(Batch(tokens())) - other(Batch(tokens()))).abs().max() > 1e-3
    logits = model(Batch(tokens()))
    uncapped = F.linear(model.hidden(Batch(tokens()), None), model.head_weight())[..., :131]
    assert uncapped.abs().max() > 5
    torch.testing.assert_close(logits, 15 * torch.tanh(uncapped / 15))
    assert noisy().bfloat16()(Batch(tokens())).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2", "NanoChatForCausalLM needs positions rope"),
        ("windows", "window_pattern L"),
        ("value embeddings", "no value_embeddings"),
        ("residual scalars", "no residual_scalars"),
    ],
)
def test_what_has_no_format_says_why(name, reason, tmp_path):
    model = tiny(**ALL[name])
    assert model.hf_config() is None and model.hf_tensors() == {}
    with pytest.raises(CheckpointError, match=reason):
        hf_export.save_hf(model, tmp_path / "hf")
    folder = hf_export.save_hf(tiny(), tmp_path / "modern")
    with pytest.raises(CheckpointError, match=reason):
        hf_format.load_into(model, folder)


def test_another_function_is_not_loaded_by_mistake(tmp_path):
    folder = hf_export.save_hf(tiny(), tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"softcap is 20(\.0)? here and 15(\.0)? there"):
        hf_format.load_into(tiny(softcap=20.0), folder)
    with pytest.raises(CheckpointError, match="model_type is llama here and nanochat there"):
        hf_format.load_into(tiny(**LLAMA), folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gpt2"}, "reads folders of llama and nanochat, not of gpt2"),
        ({"model_type": "nanochat", "hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"model_type": "nanochat", "attention_bias": True}, "attention_bias"),
        ({"model_type": "nanochat", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "scaled rotary"),
        ({"model_type": "llama", "attention_bias": True}, "biases in one of attention and MLP"),
    ],
)
def test_a_configuration_we_cannot_express(config, named):
    with pytest.raises(CheckpointError, match=named):
        GPTConfig.from_hf({**TINY, "intermediate_size": 80, **config})


# ------------------------------------------------------------------------------------------------ sizes, initial values


@every_option
def test_counts_add_up_and_the_json_in_a_checkpoint_is_enough(changes):
    model = build_gpt_model(**{**TINY, **changes}, is_meta_device=True)
    counts, shape = model.config.parameters(), model.shape()
    assert {role: number for role, number in counts.items() if number} == count_parameters(model)
    assert shape.stored_params == sum(parameter.numel() for parameter in model.parameters())
    assert shape.block_params == sum(parameter.numel() for block in model.blocks() for parameter in block.parameters())
    assert set(model.param_roles()) == {name for name, _ in model.named_parameters()}
    stored = json.loads(json.dumps(model.model_config()))
    again = build_from_config(stored, is_meta_device=True)
    assert again.model_config() == stored and shape_of(stored) == shape
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_flops_count_the_products_and_the_windows():
    model = build_gpt_model(**TINY, window_pattern="SSSL", short_window=5, value_embeddings=True, is_meta_device=True)
    counts = count_parameters(model)
    products = counts["matrix"] + counts["head"]
    shape = model.shape()
    assert flops_per_token(shape, 20) == 6 * products + 12 * 48 * (3 * 5 + 20)
    assert flops_per_token(shape, 4) == 6 * products + 12 * 48 * (4 * 4)
    tied = build_gpt_model(**TINY, value_embeddings=True, tie_word_embeddings=True, is_meta_device=True).shape()
    assert tied.matmul_params == shape.matmul_params


@pytest.mark.parametrize(
    ("depth", "multiplied", "total", "flops"),
    [
        (6, 29_934_144, 107_201_100, 236_227_968),
        (12, 123_570_432, 394_004_760, 967_915_008),
        (20, 457_611_520, 1_165_891_880, 3_374_814_720),
    ],
)
def test_counts_are_those_of_a_nanochat_with_value_embeddings(depth, multiplied, total, flops):
    """Of a fork with GPT-2's vocabulary: counted on its own model, by its own formula, which leaves scalars out."""
    sizes = {"num_hidden_layers": depth, "hidden_size": 64 * depth, "num_attention_heads": depth}
    config = GPTConfig(vocab_size=50304, value_embeddings=True, residual_scalars=True, **sizes)
    counts = config.parameters()
    assert counts["matrix"] + counts["head"] == multiplied
    assert sum(counts.values()) == total
    assert flops_per_token(config.shape(), 2048) == flops + 6 * 2 * depth


def test_the_preset_gpt2_is_gpt2():
    assert sum(GPTConfig(preset="gpt2").parameters().values()) == 124_439_808
    sizes = {"vocab_size": 131, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32}
    theirs = build_gpt2_model(**sizes)
    theirs.init_weights(4)
    ours = tiny(preset="gpt2", num_key_value_heads=None, num_hidden_layers=2)
    with torch.no_grad():
        ours.embed_tokens.weight.copy_(theirs.wte.weight)
        ours.embed_positions.weight.copy_(theirs.wpe.weight)
        for mine, block in zip(ours.layers, theirs.h, strict=True):
            attention = mine.self_attn
            fused = zip(
                block.attn.c_attn.weight.chunk(3), (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
            )
            for weight, projection in fused:
                projection.weight.copy_(weight)
            mine.self_attn.o_proj.weight.copy_(block.attn.c_proj.weight)
            mine.mlp.up_proj.weight.copy_(block.mlp.c_fc.weight)
            mine.mlp.down_proj.weight.copy_(block.mlp.c_proj.weight)
        torch.testing.assert_close(ours(Batch(tokens())), theirs(Batch(tokens())), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("init", ["gpt2", "nanochat"])
@pytest.mark.parametrize("tied", [False, True])
def test_initial_values_have_the_documented_deviations(init, tied):
    options = {"value_embeddings": True, "residual_scalars": True, "positions": "learned", "bias": True}
    options |= {"norm_gain": True, "qk_norm_gain": True, "hidden_size": 128, "tie_word_embeddings": tied}
    for name, parameter in tiny(init=init, **options).named_parameters():
        values = parameter.detach()
        if name.endswith("mix.weight"):
            assert values.tolist() == pytest.approx([1.0, 0.1])
        elif "norm" in name or name.endswith("bias"):
            assert (values == (1.0 if "norm" in name else 0.0)).all()
        else:
            real = values[:131] if "embed_tokens" in name or "lm_head" in name or "value_embeds" in name else values
            assert real.std().item() == pytest.approx(documented(init, tied, name), rel=0.06), name
            assert (values[131:] == 0).all() or real is values


def documented(init, tied, name):
    residual = "o_proj" in name or "down_proj" in name
    if "value_gate" in name:
        return 0.0
    if init == "gpt2" or "positions" in name:
        return 0.02 / math.sqrt(8) if residual else 0.02
    if "embed_tokens" in name:
        return 0.02 if tied else 1.0
    return 0.001 if "lm_head" in name else 0.0 if residual else 128**-0.5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"preset": "gpt5"}, "preset is 'gpt5', expected gpt2 or modern"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"positions": "alibi"}, "positions"),
        ({"window_pattern": "SAL"}, "window_pattern is 'SAL'"),
        ({"short_window": 0}, "short_window"),
        ({"softcap": -1.0}, "softcap"),
        ({"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
        ({"hidden_size": 50}, "hidden_size 50 is not divisible"),
        ({"head_dim": 7}, "head of 7"),
        ({"hidden_size": 16, "value_embeddings": True}, "at least 32, not 16"),
        ({"eos_token_id": 131}, "eos_token_id 131"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        build_gpt_model(**{**TINY, **changes})


# ----------------------------------------------------------------------------------------------------- what it computes


@every_option
def test_cached_decoding_gives_the_logits_of_a_full_forward(changes):
    model, ids, cache = noisy(**changes), tokens(2, 20), KVCache()
    with torch.no_grad():
        full = model(Batch(ids))
        pieces = [model(Batch(piece), cache=cache) for piece in ids.split([1, 5, 1, 1, 9, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=2e-5, rtol=1e-5)


@every_option
def test_documents_in_one_row_and_rows_of_unequal_length_are_as_if_alone(changes):
    model = noisy(**changes)
    first, second = tokens(1, 8), tokens(1, 12)
    packed = Batch(
        torch.cat([first, second], 1),
        position_ids=torch.cat([torch.arange(8), torch.arange(12)])[None],
        segment_ids=torch.tensor([[0] * 8 + [1] * 12]),
    )
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), first], 1), second])
    cache = KVCache(left_padding=torch.tensor([4, 0]))
    with torch.no_grad():
        alone = model(Batch(first)), model(Batch(second))
        torch.testing.assert_close(model(packed), torch.cat(alone, 1), atol=2e-5, rtol=1e-5)
        decoded = torch.cat([model(Batch(piece), cache=cache) for piece in padded.split([7, 1, 4], dim=1)], 1)
    torch.testing.assert_close(decoded[:1, 4:], alone[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(decoded[1:], alone[1], atol=2e-5, rtol=1e-5)


def test_a_window_sees_so_many_tokens_and_the_last_layer_all():
    """Through L layers a token reaches L (window - 1) back; one full layer, and it reaches everything."""
    ids, far = tokens(1, 20), tokens(1, 20)
    far[:, :8] = (far[:, :8] + 1) % 128
    narrow = noisy(window_pattern="S", short_window=4)
    with torch.no_grad():
        seen, seen_far = (first_layer(narrow, one) for one in (ids, far))
        assert torch.equal(seen[:, 11:], seen_far[:, 11:])  # token 11 sees 8 to 11
        assert not torch.equal(seen[:, 10], seen_far[:, 10])
        assert not torch.allclose(narrow(Batch(ids))[:, -1], narrow(Batch(far))[:, -1])
    assert narrow.windows == [4, 4, 4, None]
    assert GPTConfig(**TINY, window_pattern="SSL").windows == [16, 16, None, None]


def first_layer(model, ids):
    """What comes out of the first block."""
    seen = []
    handle = model.layers[0].register_forward_hook(lambda block, inputs, output: seen.append(output))
    model(Batch(ids))
    handle.remove()
    return seen[0]


@every_option
def test_the_loss_is_that_of_the_logits_whole_or_in_chunks(changes):
    model, labels = noisy(**changes), tokens().roll(-1, 1)
    expected = F.cross_entropy(model(Batch(tokens())).flatten(0, 1), labels.flatten(), reduction="sum")
    for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy(chunk_tokens=64)):
        torch.testing.assert_close(model(Batch(tokens(), labels), head_loss=loss), expected)


def test_no_head_of_a_capped_model_sees_whole_logits(monkeypatch):
    """Neither the chunked loss, nor those that look at some positions: what they give is that of whole logits."""
    model, labels = noisy(), tokens().roll(-1, 1)
    labels[:, :-3] = IGNORE_INDEX
    last = torch.tensor([19, 7])
    with torch.no_grad():
        logits = model(Batch(tokens()))
        expected = {
            LastLogits(): logits[:, -1],
            LogitsAt(last): logits[[0, 1], last],
            SpanHead(): SpanHead().from_logits(logits, labels),
            ChunkedCrossEntropy(): MaskedCrossEntropy().from_logits(logits, labels),
        }
        monkeypatch.setattr(type(model), "logits", lambda *_: pytest.fail("whole logits"))
        for head, wanted in expected.items():
            torch.testing.assert_close(model(Batch(tokens(), labels), head_loss=head), wanted, atol=1e-5, rtol=1e-5)
        assert model(Batch(tokens(), labels), head_loss=ByRow(ChunkedCrossEntropy(), None)).shape == (3,)


RULES = {
    "adamw": lambda model: same_rule(UpdateRule(build_adamw, 3e-3, 0.1)),
    "muon_adamw": muon_adamw(lr=0.02, weight_decay=0.1, scalar_lr=3e-3),
}


@pytest.mark.parametrize("optimizer", RULES)
@pytest.mark.parametrize("name", ["modern", "gpt2", "llama", "all at once"])
def test_twenty_steps_lower_the_loss(name, optimizer):
    model = tiny(**ALL[name])
    stepper = build_optimizer(model, RULES[optimizer](model))
    text = torch.frombuffer(bytearray(b"the cat sat on the mat and the dog sat on the log, " * 8), dtype=torch.uint8)
    rows = text[: 8 * 32 + 1].long()
    batch = Batch(rows[:-1].view(8, 32), rows[1:].view(8, 32))
    losses = []
    for _ in range(20):
        loss = model(batch, head_loss=MaskedCrossEntropy()) / 256
        losses.append(loss.item())
        loss.backward()
        stepper.step()
        stepper.zero_grad()
    assert losses[0] == pytest.approx(math.log(131), rel=0.05)
    assert losses[-1] < 0.75 * losses[0]
    for table in (one for one in model.parameters() if len(one) == model.padded_vocab_size):
        assert not table[131:].any(), "padding is no part of any update"


def test_it_compiles_as_one_graph():
    """What inductor makes of such a graph is tested with GPT-2 and Llama."""
    model = tiny(**ALL["all at once"]).requires_grad_(requires_grad=False)
    batch = Batch(tokens(), tokens(), segment_ids=torch.arange(20).expand(2, 20) // 7)
    for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy()):
        found = torch.compile(model, fullgraph=True, backend="eager")(batch, head_loss=loss)
        torch.testing.assert_close(found, model(batch, head_loss=loss))


def test_bf16_is_near_fp32_in_every_attention():
    expected = noisy()(Batch(tokens()))
    for implementation in ("sdpa", "matmul", "eager"):
        model = noisy(attn_implementation=implementation, qk_norm_gain=True)
        for block in model.layers:
            block.self_attn.q_norm.weight.data.fill_(1.0)
            block.self_attn.k_norm.weight.data.fill_(1.0)
        assert model(Batch(tokens())).shape == expected.shape
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model(Batch(tokens())).isfinite().all()


def test_what_can_be_spread_over_ranks():
    model = tiny()
    names = {name for name, _ in model.named_modules()}
    assert {name.replace("*", "0") for name in model.tp_plan()} <= names
    assert model.spreads_attention and model.head_counts().keys()
    assert tiny(value_embeddings=True).tp_plan() == {}
    for name, options, (tp, cp) in (
        ("window_pattern SL", {"window_pattern": "SL"}, (1, 2)),
        ("window_pattern SL", {"window_pattern": "SL"}, (2, 1)),
        ("value_embeddings", {"value_embeddings": True}, (2, 1)),
    ):
        with pytest.raises(ConfigError, match=f"{name} cannot be spread over 2"):
            tiny(**options).check_spread(tp=tp, cp=cp)
        tiny(**options).check_spread(tp=1, cp=1)
    tiny(value_embeddings=True).check_spread(tp=1, cp=2)
    windowed = tiny(window_pattern="SL")
    assert not windowed.spreads_attention
    assert tiny(window_pattern="L").attention_shape() == (4, 12)
