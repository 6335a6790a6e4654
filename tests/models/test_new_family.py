"""A new family is two files and a line in two tables: it trains, is sized, saved, described, exported and scored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.token_files import write_token_file

import automodel_cli.models
from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models.families import FAMILIES, shape_of
from automodel_cli.recipes.pretrain import PretrainRecipe

CONFIG = '''
from dataclasses import dataclass
from typing import ClassVar

from automodel_cli.models.model_config import ModelConfig, refuse_arguments, size_problems


@dataclass(kw_only=True)
class BigramConfig(ModelConfig):
    """What ``build_bigram_model`` takes.

    Args:
        width: of the two tables.
    """

    family: ClassVar[str] = "bigram"

    vocab_size: int = 64
    width: int = 8
    longest: int = 32
    attn_implementation: str = "none"
    is_meta_device: bool = False

    def __post_init__(self):
        refuse_arguments("build_bigram_model", size_problems(self, ("vocab_size", "width")))

    def parameters(self):
        return dict.fromkeys(("embedding", "head"), self.vocab_size * self.width)

    def dimensions(self):
        return {"layers": 0, "width": 0}

    def hf_config(self):
        return {"model_type": "bigram", "vocab_size": self.vocab_size, "width": self.width}

    @classmethod
    def from_hf(cls, config):
        return {name: config[name] for name in ("vocab_size", "width")}
'''
MODEL = """
from torch import nn

from automodel_cli.arguments import takes
from automodel_cli.models.bigram_config import BigramConfig
from automodel_cli.models.interface import HFTensor
from automodel_cli.models.own import OwnCausalLM, built


class Bigram(OwnCausalLM):
    takes_cache = False
    positions_setting = "longest"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(self.padded_vocab_size, config.width)
        self.head = nn.Linear(config.width, self.padded_vocab_size, bias=False)

    def hidden(self, batch, cache):
        return self.embed(batch.input_ids)

    def head_weight(self):
        return self.head.weight

    def role(self, name):
        return {"embed.weight": "embedding", "head.weight": "head"}[name]

    def init_std(self, name):
        return 0.02

    def hf_tensors(self):
        return {name: HFTensor(f"bigram.{name}", rows=self.vocab_size) for name, _ in self.named_parameters()}


@takes(BigramConfig)
def build_bigram_model(config):
    return built(Bigram, config)
"""
BUILDER = "automodel_cli.models.bigram.build_bigram_model"
IDS = torch.arange(12).reshape(1, 12)


@pytest.fixture(autouse=True)
def bigram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files in the models' room, and the line in the tables."""
    (tmp_path / "bigram_config.py").write_text(CONFIG)
    (tmp_path / "bigram.py").write_text(MODEL)
    room = automodel_cli.models
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    for name in ("bigram", "bigram_config"):
        monkeypatch.delattr(room, name, raising=False)
        monkeypatch.delitem(sys.modules, f"automodel_cli.models.{name}", raising=False)
    for table in (FAMILIES, ROLES["model"].ours):
        monkeypatch.setitem(table, BUILDER, "automodel_cli.models.bigram_config.BigramConfig")


def config(folder: Path, *more: str) -> PretrainConfig:
    write_token_file(folder / "train.bin", torch.arange(400).numpy().astype("uint16") % 50)
    lines = {
        "model": {"_target_": BUILDER, "vocab_size": 50},
        "dataset": {
            "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "file_pattern": str(folder / "train.bin"),
            "seq_len": 8,
        },
        "step_scheduler": {"global_batch_size": 4, "local_batch_size": 4, "max_steps": 2},
        "checkpoint": {"checkpoint_dir": str(folder / "run")},
    }
    overrides = [f"--{section}.{key}={value}" for section, keys in lines.items() for key, value in keys.items()]
    return load_config(PretrainConfig, None, [*overrides, "--compile=false", *more], {})


def test_its_arguments_are_checked_like_those_of_others(tmp_path):
    with pytest.raises(ConfigError, match="build_bigram_model takes no such argument"):
        config(tmp_path, "--model.breadth=3")
    with pytest.raises(ConfigError, match="expected a whole number, found the text 'wide'"):
        config(tmp_path, "--model.width=wide")
    assert "bigram" not in vars(automodel_cli.models)  # the model itself, with torch, was not needed


def test_it_trains_and_is_sized_saved_described_exported_and_loaded(tmp_path):
    recipe = PretrainRecipe(config(tmp_path))
    recipe.setup()
    recipe.run_train_validation_loop()
    loaded = load_model(tmp_path / "run")
    facts = loaded.facts["model"]
    assert facts == {
        "family": "bigram",
        "vocab_size": 50,
        "width": 8,
        "longest": 32,
        "attn_implementation": "none",
    }
    assert shape_of(facts).stored_params == sum(weight.numel() for weight in loaded.model.parameters())

    folder = hf_export.export(tmp_path / "run/step_00000002", tmp_path / "hf")
    again = hf_format.load_model(folder)
    with torch.no_grad():
        assert torch.equal(again(Batch(IDS)), loaded.model(Batch(IDS)))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        again.config.width = 9
        hf_format.load_into(type(again)(again.config), folder, any_function=True)
