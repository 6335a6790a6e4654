"""One configuration laid over another."""

from pathlib import Path

import pytest

from automodel_cli.config.layers import located
from automodel_cli.config.load import load_config, to_dict
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.yaml_tree import parse_document
from automodel_cli.errors import ConfigError

BASE = """
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 2, vocab_size: 64}
dataset: {_target_: NanogptDataset, file_pattern: a.bin, seq_len: 8}
optimizer: {_target_: torch.optim.AdamW, lr: 0.1, betas: [0.8, 0.9]}
step_scheduler: {max_tokens: 1M, global_batch_size: 4}
"""


def laid(tmp_path: Path, *layers: str, overrides: tuple[str, ...] = ()) -> dict:
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    over = [parse_document(layer, f"layer{number}.yaml")[0] for number, layer in enumerate(layers)]
    return to_dict(load_config(PretrainConfig, base, overrides, over=over))


def test_keys_are_gone_into_and_lists_replaced(tmp_path):
    found = laid(tmp_path, "optimizer: {lr: 0.2, betas: [0.5, 0.6]}", "optimizer: {lr: 0.3}\nstage: pretraining")
    assert found["optimizer"] == {"_target_": "torch.optim.AdamW", "lr": 0.3, "betas": [0.5, 0.6]}
    assert found["stage"] == "pretraining" and found["model"]["n_layer"] == 2


def test_a_target_replaces_its_section(tmp_path):
    found = laid(tmp_path, "optimizer: {_target_: torch.optim.SGD, lr: 0.2}")
    assert found["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.2}


@pytest.mark.parametrize("name", ["max_steps", "num_epochs", "tokens_per_param"])
def test_one_end_of_the_run_replaces_another(tmp_path, name):
    scheduler = laid(tmp_path, f"step_scheduler: {{{name}: 3}}")["step_scheduler"]
    assert scheduler[name] == 3 and scheduler["max_tokens"] is None and scheduler["global_batch_size"] == 4


def test_overrides_come_last_and_null_takes_away(tmp_path):
    layers = ("optimizer: {lr: 0.2}\nstage: pretraining", "stage: null")
    found = laid(tmp_path, *layers, overrides=("--optimizer.lr", "0.4"))
    assert found["optimizer"]["lr"] == 0.4 and found["stage"] is None


def test_a_mistake_is_told_by_the_layer_it_is_in(tmp_path):
    with pytest.raises(ConfigError, match=r"layer0.yaml:2: optimizer.*lrate"):
        laid(tmp_path, "stage: pretraining\noptimizer: {lrate: 0.2}")
    with pytest.raises(ConfigError, match="trunk: step_scheduler"):
        base = tmp_path / "base.yaml"
        load_config(PretrainConfig, base, over=[located({"step_scheduler": {"max_steps": -1}}, "trunk")])


def test_layers_are_not_changed(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    layers = [located({"lr_scheduler": {"lr_warmup_steps": 1}}, "a"), located({"lr_scheduler": {"min_lr": 0}}, "b")]
    for _ in range(2):
        load_config(PretrainConfig, tmp_path / "base.yaml", over=layers)
    assert layers[0] == {"lr_scheduler": {"lr_warmup_steps": 1}}
