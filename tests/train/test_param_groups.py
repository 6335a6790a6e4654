"""Who decays, and by which multipliers."""

import pytest
from torch import nn

from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import wrap
from automodel_cli.train.param_groups import build_param_groups


@pytest.fixture
def model():
    return build_gpt2_model(vocab_size=128, n_positions=16, n_embd=8, n_layer=2, n_head=2)


def by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_each_parameter_once_and_only_matrices_decay(model):
    found = by_name(model, build_param_groups(model, weight_decay=0.1))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, group in found.items():
        matrix = name.endswith("weight") and "ln_" not in name and not name.startswith(("wte", "wpe"))
        assert group["weight_decay"] == (0.1 if matrix else 0.0), name


def test_embeddings_decay_when_asked(model):
    found = by_name(model, build_param_groups(model, weight_decay=0.1, decay_embeddings=True))
    assert found["wte.weight"]["weight_decay"] == found["wpe.weight"]["weight_decay"] == 0.1
    assert found["ln_f.weight"]["weight_decay"] == 0.0


def test_overrides_multiply(model):
    found = by_name(
        model,
        build_param_groups(
            model,
            weight_decay=0.1,
            overrides=[
                {"pattern": r"\.mlp\.", "lr_mult": 0.5, "wd_mult": 2.0},
                {"pattern": r"^h\.1\.", "lr_mult": 0.1},
            ],
        ),
    )
    assert found["h.0.mlp.c_fc.weight"]["lr_mult"] == 0.5
    assert found["h.0.mlp.c_fc.weight"]["weight_decay"] == pytest.approx(0.2)
    assert found["h.1.mlp.c_fc.weight"]["lr_mult"] == pytest.approx(0.05)
    assert found["h.1.mlp.c_fc.bias"]["weight_decay"] == 0.0
    assert found["h.1.attn.c_attn.weight"]["lr_mult"] == 0.1
    assert found["wte.weight"]["lr_mult"] == 1.0


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ({"pattern": "nothing"}, "matches no parameter"),
        ({"pattern": "("}, "regular expression"),
        ({"lr_mult": 2.0}, "regular expression"),
        ({"pattern": "wte", "lr": 2.0}, "unknown keys lr"),
        ({"pattern": "wte", "lr_mult": "fast"}, "lr_mult is 'fast'"),
        ({"pattern": "wte", "wd_mult": -1}, "wd_mult is -1"),
    ],
)
def test_a_bad_override_is_named(model, override, named):
    with pytest.raises(ConfigError, match=named):
        build_param_groups(model, weight_decay=0.1, overrides=[override])


def test_frozen_parameters_are_left_out(model):
    model.wpe.weight.requires_grad_(False)
    assert "wpe.weight" not in by_name(model, build_param_groups(model, weight_decay=0.1))


def test_a_foreign_module_by_shapes_and_kinds():
    module = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 10))
    groups = by_name(wrap(module), build_param_groups(wrap(module), weight_decay=0.1))
    decays = {name for name, group in groups.items() if group["weight_decay"]}
    assert decays == {"module.2.weight"}
