"""Which parameters Muon updates, and with which settings."""

from pathlib import Path

import pytest
import yaml

from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_optimizer
from automodel_cli.train.param_groups import Override
from automodel_cli.train.schedules import Schedule, base_value

ROOT = Path(__file__).resolve().parents[3]

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


def test_embeddings_head_and_the_rest_have_betas_and_decay_of_their_own():
    """As nanochat sets them; what is not given is the rest's."""
    own = {
        "embed_betas": (0.8, 0.995), "lm_head_betas": (0.8, 0.96), "embed_weight_decay": 0.001,
        "lm_head_weight_decay": 0.01,
    }  # fmt: skip
    model = build_llama_model(**LLAMA)
    expected = {
        "embed_tokens": ((0.8, 0.995), 0.001), "lm_head": ((0.8, 0.96), 0.01), "norm": ((0.9, 0.95), 0.0),
        "q_proj": ((0.9, 0.95), 0.28),
    }  # fmt: skip
    for settings, wanted in ((own, expected), ({"scalar_weight_decay": 0.1}, {"lm_head": ((0.9, 0.95), 0.1)})):
        optimizer = build_optimizer(model, muon_adamw(weight_decay=0.28, **settings)(model))
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            betas, weight_decay = wanted.get(name.split(".")[-2], (None, None))
            if betas is not None:
                group = groups[id(parameter)]
                assert (group["betas"], group["weight_decay"]) == (betas, pytest.approx(weight_decay)), name


def test_a_rate_changed_for_all_is_still_a_multiple_of_the_section_s():
    """No group has that rate itself then."""
    model = build_llama_model(**LLAMA)
    rules = muon_adamw(lr=0.05, weight_decay=0.3, scalar_lr=0.01)(model)
    optimizer = build_optimizer(model, rules, [Override(".", lr_mult=0.5, wd_mult=2.0)])
    assert (base_value(optimizer, "lr"), base_value(optimizer, "weight_decay")) == (0.05, 0.3)
    Schedule(max_lr=base_value(optimizer, "lr")).apply(optimizer, 0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.025, 0.005}


def test_the_gpt2_file_joins_muon_with_nanogpt_s_schedule():
    """AdamW from 0 within 715 updates to 6e-4, and by a cosine to 6e-5; Muon in proportion."""
    section = yaml.safe_load((ROOT / "configs" / "gpt2_124m_muon.yaml").read_text())
    arguments = {key: value for key, value in section["optimizer"].items() if key != "_target_"}
    model = build_gpt2_model(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    optimizer = build_optimizer(model, muon_adamw(**arguments)(model))
    schedule = Schedule.from_keys(lr=base_value(optimizer, "lr"), total_steps=19_073, **section["lr_scheduler"])
    rates = {}
    for step in (0, 715, (715 + 19_073) // 2, 19_073):
        schedule.apply(optimizer, step)
        rates[step] = {group["rule"]: group["lr"] for group in optimizer.param_groups}
    assert [rate["adamw"] for rate in rates.values()] == pytest.approx([0.0, 6e-4, 3.3e-4, 6e-5])
    assert [rate["muon"] for rate in rates.values()] == pytest.approx([0.0, 0.02, 0.011, 0.002])


def test_one_schedule_moves_all_groups():
    model = build_llama_model(**LLAMA)
    optimizer = build_optimizer(model, RULES(model))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = Schedule(max_lr=base_value(optimizer, "lr") / 4)
    assert schedule.apply(optimizer, 0) == 0.005
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr / 4 for lr in before])
