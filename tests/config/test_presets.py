"""Presets are the files of configs/, and a filled-in one is a valid configuration with the data that was named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from automodel_cli.config.load import load_config
from automodel_cli.config.presets import PRESETS, describe_presets, filled_in, preset_text
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError

NO_BEGINNINGS = {"depth_tiny", "scaling_law", "scaling_law_tiny"}
NO_BEGINNINGS |= {"midtrain_task_mixture", "midtrain_tiny", "task_mixture"}  # of files that preprocess chat makes
FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if path.stem not in NO_BEGINNINGS]


def test_they_are_the_files_of_configs():
    assert sorted(PRESETS.values()) == [path.stem for path in CONFIGS]
    for path in CONFIGS:
        assert preset_text(path.stem) == path.read_text(encoding="utf-8"), f"copy {path} to config/presets/"


def test_each_is_described_in_a_sentence():
    for line in describe_presets().values():
        assert line.endswith(".") and len(line) < 125


def test_a_misspelled_one():
    with pytest.raises(ConfigError, match=r"did you mean gpt2-small\?(.|\n)*quickstart"):
        preset_text("gpt2-smal")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("data", ["data/*.bin", "my data/a: #b.bin", "$HOME/x.bin", "*.bin", "-x", "123", "null"])
def test_filled_in(name: str, data: str, tmp_path: Path):
    path = tmp_path / "run.yaml"
    text = filled_in(name, "run.yaml", data, None, 4242 if name != "megatron-gpt2" else None)
    path.write_text(text, encoding="utf-8")
    cfg = load_config(PretrainConfig, path)
    arguments = cfg.dataset.arguments
    assert arguments["paths" if name == "megatron-gpt2" else "file_pattern"] == data
    assert cfg.validation_datasets == {} and cfg.checkpoint.checkpoint_dir == "checkpoints/run"
    assert cfg.model.arguments.get("vocab_size") == (None if name == "megatron-gpt2" else 4242)
    assert text.count("#") > 8 and "configs/" not in text


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"nanogpt"}))
def test_validation_data_and_nothing_else_changes(name: str):
    given = yaml.safe_load(filled_in(name, "run.yaml", "a", "b", None))
    key = "paths" if name == "megatron-gpt2" else "file_pattern"
    assert (given["dataset"][key], given["validation_dataset"][key]) == ("a", "b")
    plain = yaml.safe_load(preset_text(name))
    for section, value in (("dataset", "a"), ("validation_dataset", "b")):
        plain[section][key] = value
    plain["checkpoint"]["checkpoint_dir"] = "checkpoints/run"
    assert given == plain
