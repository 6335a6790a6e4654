"""Who decays, and by which multipliers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import wrap
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.param_groups import Override, UpdateRule, build_param_groups, same_rule


@pytest.fixture
def model():
    return build_gpt2_model(vocab_size=128, n_positions=16, n_embd=8, n_layer=2, n_head=2)


ADAMW = UpdateRule(build_adamw, weight_decay=0.1)


def by_name(model, rules=None, overrides=()):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    built = build_param_groups(model, rules or same_rule(ADAMW), overrides)
    return {
        names[id(parameter)]: group for groups in built.values() for group in groups for parameter in group["params"]
    }


def test_each_parameter_once_and_only_matrices_decay(model):
    found = by_name(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, group in found.items():
        matrix = name.endswith("weight") and "ln_" not in name and not name.startswith(("wte", "wpe"))
        assert group["weight_decay"] == (0.1 if matrix else 0.0), name


def test_embeddings_decay_when_asked(model):
    found = by_name(model, same_rule(ADAMW, decay_embeddings=True))
    assert found["wte.weight"]["weight_decay"] == found["wpe.weight"]["weight_decay"] == 0.1
    assert found["ln_f.weight"]["weight_decay"] == 0.0


def test_overrides_multiply(model):
    overrides = [Override(r"\.mlp\.", 0.5, 2.0), Override(r"^h\.1\.", lr_mult=0.1)]
    found = by_name(model, overrides=overrides)
    assert found["h.0.mlp.c_fc.weight"]["lr_mult"] == 0.5
    assert found["h.0.mlp.c_fc.weight"]["weight_decay"] == pytest.approx(0.2)
    assert found["h.1.mlp.c_fc.weight"]["lr_mult"] == pytest.approx(0.05)
    assert found["h.1.mlp.c_fc.bias"]["weight_decay"] == 0.0
    assert found["h.1.attn.c_attn.weight"]["lr_mult"] == 0.1
    assert found["wte.weight"]["lr_mult"] == 1.0


@pytest.mark.parametrize(("pattern", "named"), [("nothing", "matches no parameter"), ("(", "regular expression")])
def test_a_bad_override_is_named(model, pattern, named):
    with pytest.raises(ConfigError, match=named):
        by_name(model, overrides=[Override(pattern)])


def test_frozen_parameters_are_left_out(model):
    model.wpe.weight.requires_grad_(False)
    assert "wpe.weight" not in by_name(model)


def test_a_foreign_module_by_shapes_and_kinds():
    module = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 10))
    groups = by_name(wrap(module))
    decays = {name for name, group in groups.items() if group["weight_decay"]}
    assert decays == {"module.2.weight"}


def test_roles_have_optimizers_and_settings_of_their_own(model):
    matrices = UpdateRule(torch.optim.SGD, lr=0.2, weight_decay=0.1, settings={"momentum": 0.9})
    others = UpdateRule(build_adamw, lr=0.05, decays=False, settings={"betas": (0.8, 0.9)})
    rules = {**same_rule(others), "matrix": matrices, "embedding": replace(others, lr=0.4)}
    built = build_param_groups(model, rules, [Override("wte", lr_mult=0.5)])
    assert [len(groups) for groups in built.values()] == [2, 1]
    assert built.keys() == {build_adamw, torch.optim.SGD}
    found = by_name(model, rules, [Override("wte", lr_mult=0.5)])
    table, norm, matrix = (found[name] for name in ("wte.weight", "ln_f.bias", "h.1.mlp.c_fc.weight"))
    assert (table["lr"], norm["lr"], matrix["lr"]) == pytest.approx((0.2, 0.05, 0.2))
    assert (table["lr_mult"], norm["lr_mult"], matrix["lr_mult"]) == pytest.approx((1.0, 0.25, 1.0))
    assert (table["weight_decay"], matrix["weight_decay"], matrix["wd_mult"]) == (0.0, 0.1, 1.0)
    assert (norm["betas"], matrix["momentum"]) == ((0.8, 0.9), 0.9)
