"""When the blocks' products run in fp8, and every reason against it."""

import pytest
import torch
import transformers

from automodel_cli import device as this_machine
from automodel_cli.assembly.machine.fp8 import choose_fp8
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.huggingface.model import HFCausalLM

ON = {"enabled": True}
FORCED = {**ON, "force": True, "emulate": True}


def gpt2(layers, width):
    return build_gpt2_model(n_layer=layers, n_embd=width, n_head=width // 16, is_meta_device=True)


def choose(tiny_training, fp8, *, model=None, stored=None, precision="bf16", tokens=64, **sections):
    return choose_fp8(
        load_config(PretrainConfig, tiny_training.config(fp8=fp8, **sections), []),
        stored=stored,
        model=model or gpt2(2, 32),
        device=torch.device("cpu"),
        precision=precision,
        tokens=tokens,
    )


def test_off_unless_wanted(tiny_training):
    for fp8 in (None, False, {}, {"force": True, "recipe_name": "tensorwise"}):
        assert choose(tiny_training, fp8) == ({"recipe": "off"}, "")


def test_wanted(tiny_training):
    choice, reason = choose(tiny_training, {**FORCED, "filter_fqns": ["h.0."]})
    assert choice == {"recipe": "tensorwise", "filter_fqns": ["h.0."], "emulate": True}
    assert reason == "tensorwise, emulated, 4 of 8 linear layers of the blocks"


def test_the_configuration_wins_over_what_is_stored(tiny_training):
    stored = {"recipe": "tensorwise", "filter_fqns": [], "emulate": True}
    assert choose(tiny_training, False, stored=stored)[0] == {"recipe": "off"}
    assert choose(tiny_training, FORCED, stored={"recipe": "off"})[0] == stored


def test_a_billion_parameters_need_no_force(tiny_training, monkeypatch):
    monkeypatch.setattr(this_machine, "lacks_fp8", lambda device: None)
    choice, reason = choose(tiny_training, ON, model=gpt2(48, 1600))  # GPT-2 XL
    assert choice == {"recipe": "tensorwise", "filter_fqns": [], "emulate": False}
    assert reason == "tensorwise, 192 of 192 linear layers of the blocks"
    with pytest.raises(ConfigError, match=r"found 774M parameters, and it pays from about a billion") as error:
        choose(tiny_training, ON, model=gpt2(36, 1280))  # GPT-2 large
    assert error.value.hint == "fp8.force: true trains in fp8 all the same; or set fp8: false"


@pytest.mark.parametrize(
    ("fp8", "arguments", "problem"),
    [
        ({**ON, "force": True}, {}, "cpu has no fp8 matrix units"),
        (FORCED, {"precision": "fp32"}, "what is not in fp8 is computed in fp32"),
        (FORCED, {"distributed": {"tp_size": 2}}, "distributed.tp_size is 2"),
        (FORCED, {"tokens": 40}, "micro-batch of 40 tokens does not divide by 16"),
        (FORCED, {"tokens": 48, "distributed": {"cp_size": 2}}, "micro-batch of 24 tokens"),
        ({**FORCED, "filter_fqns": ["attn", "h.*.mlp*"]}, {}, "no linear layer in the blocks"),
    ],
)
def test_refusals(tiny_training, fp8, arguments, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        choose(tiny_training, fp8, **arguments)
    assert error.value.hint.endswith("or set fp8: false")


def test_transformers_gpt2_has_no_linear_layers(tiny_training):
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ConfigError, match="no linear layer in the blocks"):
        choose(tiny_training, FORCED, model=HFCausalLM(transformers.GPT2LMHeadModel(config)))


def test_all_reasons_at_once(tiny_training):
    with pytest.raises(ConfigError) as error:
        choose(tiny_training, ON, precision="fp32")
    for reason in ("cpu has no fp8", "computed in fp32", "found 2M parameters"):
        assert reason in error.value.message


def test_a_run_is_refused_before_it_writes_anything(tiny_training):
    with pytest.raises(ConfigError, match="fp8"):
        tiny_training.recipe(fp8=True)
    assert not list(tiny_training.run.glob("step_*"))
