"""From a model section to a model with weights: whose weights stay, whose are drawn."""

import pytest
import torch
import transformers

from automodel_cli.assembly.model import build_model, init_or_load_weights
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import CheckpointError

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 50}
CPU = torch.device("cpu")


def saved_gpt2(folder):
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **tokens))
    model.save_pretrained(folder)
    return model


def test_weights_that_a_target_loaded_are_kept(tmp_path):
    """Drawing them anew would turn fine-tuning into training from scratch without a word."""
    original = saved_gpt2(tmp_path)
    for name in (
        "transformers.AutoModelForCausalLM.from_pretrained",
        "automodel_cli.models.hf.from_pretrained",
    ):
        model = build_model(Target(name, {"pretrained_model_name_or_path": str(tmp_path)}), seed=0)
        assert init_or_load_weights(model, init_from=None, seed=0, device=CPU) == "pretrained, from its own target"
        assert torch.equal(model.hf.transformer.wte.weight, original.transformer.wte.weight)


def test_weights_of_a_configuration_are_drawn_from_the_seed():
    target = Target("automodel_cli.models.gpt2.build_gpt2_model", SIZES)
    drawn = []
    for seed in (1, 1, 2):
        model = build_model(target, seed=seed)
        assert init_or_load_weights(model, init_from=None, seed=seed, device=CPU) == f"random, seed {seed}"
        drawn.append(model.wte.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_weights_of_another_function_are_taken_only_where_that_is_asked_for(tmp_path):
    saved_gpt2(tmp_path / "hf")
    ours = "automodel_cli.models.gpt2.build_gpt2_model"
    stored = build_model(Target(ours, SIZES), seed=1)
    stored.init_weights(1)
    step = Checkpointer(tmp_path / "run").save(
        1,
        model=stored,
        optimizer=None,
        state={},
        loader_state={},
        config_yaml="",
        facts={"model": stored.model_config()},
    )
    for source in (str(tmp_path / "hf"), str(step)):
        for change, named in (
            ({"n_head": 4}, "n_head is 4"),
            ({"activation": "gelu"}, "activation is gelu "),
        ):
            model = build_model(Target(ours, {**SIZES, **change}), seed=0)
            with pytest.raises(CheckpointError, match=named) as refused:
                init_or_load_weights(model, init_from=source, seed=0, device=CPU)
            assert "init_from_any_function: true" in refused.value.hint
            init_or_load_weights(model, init_from=source, seed=0, device=CPU, any_function=True)
        init_or_load_weights(build_model(Target(ours, SIZES), seed=0), init_from=source, seed=0, device=CPU)
