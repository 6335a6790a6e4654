"""GPT-2: the same function as transformers', the documented initial values, the declared interface."""

import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf.format import load_pieces
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models import gpt2_config
from automodel_cli.models.families import build_from_config
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import count_parameters
from automodel_cli.models.layers.kv_cache import KVCache

TINY = {"vocab_size": 131, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}


def tiny(seed=0, **changes):
    model = build_gpt2_model(**{**TINY, **changes})
    model.init_weights(seed)
    return model


def tokens(rows=2, length=20, vocab=TINY["vocab_size"]):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def transformers_gpt2(**changes):
    config = GPT2Config(**{**TINY, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **changes})
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # away from the symmetric initial values
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


from_hf = gpt2_config.GPT2Config.from_hf


def hf_state(model):
    """The weights as a Hugging Face folder has them."""
    own = model.state_dict()
    return {there.name: there.values(own[name]) for name, there in model.hf_tensors().items()} | model.hf_zeros()


def fill(model, tensors, folder):
    """Weights of a Hugging Face folder with these tensors."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    assert load_pieces(model, [path], folder)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_transformers_weights_give_transformers_logits(tmp_path, activation):
    theirs = transformers_gpt2(activation_function=activation)
    ours = build_gpt2_model(**from_hf(theirs.config.to_dict()))
    fill(ours, theirs.state_dict(), tmp_path)
    ids = tokens()
    with torch.no_grad():
        difference = ours.eval()(Batch(ids)) - theirs(ids).logits
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_exported_weights_give_the_same_logits_in_transformers(bias):
    ours = tiny(bias=bias, activation="gelu").eval()
    theirs = GPT2LMHeadModel(GPT2Config(**ours.hf_config())).eval()
    missing, unexpected = theirs.load_state_dict(hf_state(ours), strict=False)
    assert unexpected == []
    assert missing in ([], ["lm_head.weight"])
    ids = tokens()
    with torch.no_grad():
        assert (theirs(ids).logits - ours(Batch(ids))).abs().max() < 1e-5


def test_a_round_trip_through_the_hugging_face_format_is_exact(tmp_path):
    ours = tiny()
    again = build_gpt2_model(**from_hf(ours.hf_config()))
    fill(again, hf_state(ours), tmp_path)
    for name, parameter in ours.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


def test_weights_that_do_not_fit_are_named(tmp_path):
    theirs = transformers_gpt2().state_dict()
    with pytest.raises(CheckpointError, match=r"wte\.weight has shape \(131, 48\), expected \(140, 48\)"):
        fill(build_gpt2_model(**{**TINY, "vocab_size": 140}), theirs, tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        fill(build_gpt2_model(**{**TINY, "n_layer": 4}), theirs, tmp_path)
    with pytest.raises(CheckpointError, match="not part of the model"):
        fill(build_gpt2_model(**{**TINY, "n_layer": 2}), theirs, tmp_path)


def test_a_configuration_we_cannot_express_is_refused():
    with pytest.raises(CheckpointError, match="scale_attn_by_inverse_layer_idx"):
        from_hf(GPT2Config(**TINY, scale_attn_by_inverse_layer_idx=True).to_dict())


def test_initial_values_have_the_documented_deviations():
    model = tiny(n_embd=128, n_layer=8, n_positions=256)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif ".ln_" in f".{name}":
            assert (parameter == 1).all()
        else:
            expected = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            real = parameter[: model.vocab_size] if name == "wte.weight" else parameter
            assert real.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(real.mean().item()) < 4 * expected / math.sqrt(real.numel())
    assert model.wte.weight[model.vocab_size :].abs().max() == 0


def test_initial_values_depend_on_seed_and_name_only():
    one, again, other = tiny(seed=5), tiny(seed=5), tiny(seed=6)
    torch.manual_seed(99)
    meta = build_gpt2_model(**TINY, is_meta_device=True)
    assert all(parameter.is_meta for parameter in meta.parameters())
    meta.materialize("cpu", seed=5)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert torch.equal(parameter, meta.get_parameter(name))
    assert not torch.equal(one.wte.weight, other.wte.weight)
    deeper = tiny(seed=5, n_layer=4)
    assert torch.equal(deeper.h[1].attn.c_attn.weight, one.h[1].attn.c_attn.weight)
    assert not torch.equal(one.h[0].attn.c_attn.weight, one.h[1].attn.c_attn.weight)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = tiny(dropout=0.5)
    batch = Batch(tokens())
    with torch.no_grad():
        assert torch.equal(model.eval()(batch), model(batch))
        assert not torch.equal(model.train()(batch), model(batch))
        calm = tiny(dropout=0.0)
        assert torch.equal(calm.train()(batch), model.eval()(batch))
    assert model.has_dropout()
    assert not calm.has_dropout()


def test_logits_have_the_logical_vocabulary_and_weights_the_padded_one():
    model = tiny()
    assert (model.vocab_size, model.padded_vocab_size) == (131, 256)
    assert model.wte.weight.shape == (256, 48)
    assert model(Batch(tokens())).shape == (2, 20, 131)


def test_counts_are_those_of_gpt2_small():
    model = build_gpt2_model(is_meta_device=True)
    assert sum(count_parameters(model).values()) == 124_439_808
    assert model.wte.weight.shape[0] == 50304


def test_a_later_token_does_not_change_an_earlier_logit():
    model, ids = tiny().eval(), tokens()
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 131
    with torch.no_grad():
        one, other = model(Batch(ids)), model(Batch(changed))
    assert torch.equal(one[:, :12], other[:, :12])
    assert not torch.allclose(one[:, 12:], other[:, 12:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "matmul", "flash_attention_2"])
def test_segments_do_not_see_each_other(implementation):
    model = tiny(attn_implementation=implementation).eval()
    first, second = tokens(1, 8), tokens(1, 12).flip(1)
    packed = Batch(
        torch.cat([first, second], 1),
        position_ids=torch.cat([torch.arange(8), torch.arange(12)])[None],
        segment_ids=torch.tensor([[0] * 8 + [1] * 12]),
    )
    with torch.no_grad():
        alone = torch.cat([model(Batch(first)), model(Batch(second))], 1)
        torch.testing.assert_close(model(packed), alone, atol=1e-5, rtol=1e-5)


def test_implementations_agree():
    ids = tokens()
    with torch.no_grad():
        outputs = [tiny(attn_implementation=name).eval()(Batch(ids)) for name in ("auto", "eager", "cudnn", "matmul")]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)


def test_cached_decoding_gives_the_logits_of_a_full_forward():
    model, ids = tiny().eval(), tokens(2, 16)
    cache = KVCache()
    with torch.no_grad():
        full = model(Batch(ids))
        pieces = [model(Batch(piece), cache=cache) for piece in ids.split([5, 1, 1, 6, 3], dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=1e-5, rtol=1e-5)


def test_too_long_a_sequence_is_an_error():
    with pytest.raises(ConfigError, match="n_positions 32"):
        tiny()(Batch(tokens(1, 33)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_layer": 0}, "n_layer"),
        ({"n_embd": 50}, "n_embd 50 is not divisible by n_head 4"),
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "relu"}, "relu"),
        ({"eos_token_id": 131}, "eos_token_id 131"),
        ({"attn_implementation": "xformers"}, "xformers"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        build_gpt2_model(**{**TINY, **changes})


def test_an_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match="n_layers"):
        build_gpt2_model(**TINY, n_layers=4)


def test_n_ctx_is_another_name_of_n_positions():
    assert build_gpt2_model(**TINY, n_ctx=64).max_seq_len == 64


def test_a_model_is_rebuilt_from_its_configuration():
    model = tiny(dropout=0.1, activation="gelu", bias=False, eos_token_id=3)
    config = model.model_config()
    assert next(iter(config)) == "family"
    again = build_from_config(config)
    assert again.model_config() == config
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match="martian"):
        build_from_config({"family": "martian"})


def test_roles_and_names_cover_every_parameter():
    model = tiny()
    names = {name for name, _ in model.named_parameters()}
    assert set(model.param_roles()) == set(model.hf_tensors()) == names
