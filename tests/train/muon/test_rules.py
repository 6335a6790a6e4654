"""Which parameters Muon updates, and with which settings."""

import pytest

from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_optimizer
from automodel_cli.train.schedules import Schedule, base_value

LLAMA = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8,
}  # fmt: skip
RULES = muon_adamw(lr=0.02, weight_decay=0.1, scalar_lr=6e-4, embed_lr=0.3, lm_head_lr=0.004)


def by_name(model, key):
    optimizer = build_optimizer(model, RULES(model))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: group[key] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == set(names.values()), "each parameter once, a tied head too"
    return found


def test_matrices_of_blocks_are_muon_s_and_the_rest_is_adamw_s():
    model = build_gpt2_model(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    muon = {name for name, rule in by_name(model, "rule").items() if rule == "muon"}
    assert muon == {f"h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}


@pytest.mark.parametrize(
    ("name", "lr", "weight_decay"),
    [
        ("model.embed_tokens.weight", 0.3, 0.0),
        ("lm_head.weight", 0.004, 0.0),
        ("model.norm.weight", 6e-4, 0.0),
        ("model.layers.0.self_attn.q_proj.weight", 0.02, 0.1),
    ],
)
def test_each_role_has_its_own_rate(name, lr, weight_decay):
    model = build_llama_model(**LLAMA)
    (found,) = (one for one in by_name(model, "lr") if one.removeprefix("model.") == name.removeprefix("model."))
    assert by_name(model, "lr")[found] == pytest.approx(lr)
    assert by_name(model, "weight_decay")[found] == weight_decay


def test_one_schedule_moves_all_groups():
    model = build_llama_model(**LLAMA)
    optimizer = build_optimizer(model, RULES(model))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = Schedule(max_lr=base_value(optimizer, "lr") / 4)
    assert schedule.apply(optimizer, 0) == 0.005
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 4 for lr in before])
