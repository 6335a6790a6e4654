"""A small configuration that is valid, and how to load one from text."""

from pathlib import Path

import pytest

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig

SMALL = """\
model:
  _target_: automodel_cli.models.gpt2.build_gpt2_model
  n_layer: 2
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: data.bin
  seq_len: 64
"""


@pytest.fixture
def small_yaml() -> str:
    return SMALL


@pytest.fixture
def load_text(tmp_path: Path):
    """``load_text(yaml, *overrides, trust=())``; the file is called ``cfg.yaml``."""

    def load(text: str = SMALL, *overrides: str, trust=(), model=PretrainConfig, flags=None):
        path = tmp_path / "cfg.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(model, path, overrides, flags, trust=trust)

    return load
