"""``model.depth`` and what is filled in for it."""

import pytest

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError

DEPTH = """\
model: {depth: 6, vocab_size: 50304, value_embeddings: true, max_position_embeddings: 2048}
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: data.bin
  seq_len: 2048
"""


def test_everything_follows_from_the_depth(load_text):
    cfg = load_text(DEPTH)
    assert cfg.model.name == "automodel_cli.models.gpt.build_gpt_model"
    assert cfg.model.arguments["hidden_size"] == 384
    assert (cfg.model.arguments["num_hidden_layers"], cfg.model.arguments["num_attention_heads"]) == (6, 6)
    assert cfg.step_scheduler.global_batch_size * 2048 == 2**18
    assert cfg.optimizer.name == "muon_adamw"
    assert cfg.optimizer.arguments == {
        "lr": 0.0141421,
        "scalar_lr": 0.00353553,
        "embed_lr": 0.212132,
        "lm_head_lr": 0.00282843,
        "weight_decay": 0.291899,
    }
    assert cfg.derived["step_scheduler.global_batch_size"] == 128
    assert "model.vocab_size" not in cfg.derived


@pytest.mark.parametrize("depth", [12, 20])
def test_the_command_line_turns_the_dial(load_text, depth):
    cfg = load_text(DEPTH, f"model.depth={depth}", "step_scheduler.target_flops=1e18")
    assert cfg.model.arguments["hidden_size"] == 64 * depth
    assert cfg.step_scheduler.target_flops == 1e18


def test_the_effective_configuration_has_numbers_and_reads_back(load_text, tmp_path):
    cfg = load_text(DEPTH)
    assert "depth:" not in to_yaml(cfg)
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(cfg))
    again = load_config(PretrainConfig, path)
    assert to_yaml(again) == to_yaml(cfg)


def test_what_is_set_is_kept_and_a_batch_that_was_set_decides_the_learning_rate(load_text):
    cfg = load_text(DEPTH, "step_scheduler.global_batch_size=64", "optimizer._target_=muon_adamw", "optimizer.lr=0.5")
    assert cfg.step_scheduler.global_batch_size == 64
    assert cfg.optimizer.arguments["lr"] == 0.5
    assert cfg.optimizer.arguments["embed_lr"] == pytest.approx(0.3 * (64 * 2048 / 2**19) ** 0.5)
    assert not {"optimizer.lr", "step_scheduler.global_batch_size"} & cfg.derived.keys()


def test_a_width_that_is_set_has_as_many_heads_as_fit(load_text):
    cfg = load_text(DEPTH, "model.hidden_size=512", "model.head_dim=128")
    assert (cfg.model.arguments["hidden_size"], cfg.model.arguments["num_attention_heads"]) == (512, 4)


def test_adamw_and_other_initial_values_have_other_learning_rates(load_text):
    adamw = load_text(DEPTH, "model.depth=12", "optimizer.betas=[0.9,0.95]").optimizer.arguments
    assert (adamw["lr"], adamw["weight_decay"]) == (6e-4, 0.1)
    gpt2 = load_text(DEPTH, "model.depth=12", "model.preset=gpt2").optimizer.arguments
    assert gpt2 == {"lr": 0.02, "scalar_lr": 6e-4, "weight_decay": 0.1}
    other = load_text(DEPTH, "optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1").optimizer.arguments
    assert other == {"lr": 0.1}


def test_the_older_rules_are_a_switch(load_text):
    new, old = load_text(DEPTH), load_text(DEPTH, "model.scaling_rules=width")
    assert old.step_scheduler.global_batch_size == 256
    assert old.optimizer.arguments["embed_lr"] > 0.3 > new.optimizer.arguments["embed_lr"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.depth=0", r"model.depth: expected a number above 0, found 0"),
        ("model.depth=1000000000", r"model.depth: expected at most 10,000 layers, found 1,000,000,000"),
        ("model.depth=deep", r"model.depth: expected a whole number, found the text 'deep'"),
        ("model.num_hidden_layers=4", r"model.depth: is 6 and model.num_hidden_layers 4; keep one of them"),
        ("model.scaling_rules=none_of_these", r"model.scaling_rules: expected power_lines or width"),
        ("model._target_=automodel_cli.models.gpt2.build_gpt2_model", r"model.depth: is a key of .*build_gpt_model"),
        ("model.depth=null", r"model: a _target_ is needed"),
        ("model.num_key_value_heads=5", r"num_attention_heads 6 is not divisible by num_key_value_heads 5"),
    ],
)
def test_what_is_wrong_is_said_at_its_key(load_text, override, says):
    with pytest.raises(ConfigError, match=says):
        load_text(DEPTH, override)


def test_its_options_need_a_depth(load_text, small_yaml):
    with pytest.raises(ConfigError, match=r"model.aspect_ratio: goes with model.depth"):
        load_text(small_yaml, "model.aspect_ratio=32")


def test_what_the_model_refuses_is_told_once(load_text):
    with pytest.raises(ConfigError) as raised:
        load_text(DEPTH, "model.softcap=-1")
    assert raised.value.message.count("softcap is -1.0") == 1
