"""A small run on disk for the tests of what reads checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.models.gpt2 import build_gpt2_model


def _tiny(seed: int = 0) -> nn.Module:
    model = build_gpt2_model(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    model.init_weights(seed)
    return model


def _save(run: Path, step: int, model: nn.Module, *, save_format: str = "safetensors", **changes) -> Path:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    arguments = {
        "state": {},
        "loader_state": {},
        "config_yaml": f"seed: 1\nstep_scheduler: {{max_steps: {step}}}\n",
        "facts": {
            "model": model.model_config(),
            "param_roles": model.param_roles(),
            "tokenizer": {"name": "byte"},
            "versions": {"torch": "x"},
        },
        "metrics": {"loss": 5.0 / step, "val_loss": {"default": 4.0 / step, "other": None}},
    }
    checkpointer = Checkpointer(run, save_format=save_format)
    return checkpointer.save(step, model=model, optimizer=optimizer, **{**arguments, **changes})


@pytest.fixture
def run(tmp_path):
    """Steps 10 and 20, BEST and LATEST, an incomplete 30 and a left-over 40."""
    folder = tmp_path / "run"
    _save(folder, 10, _tiny(), is_best=True)
    _save(folder, 20, _tiny(seed=1))
    (folder / "step_00000030" / "model").mkdir(parents=True)
    (folder / "step_00000040.tmp").mkdir()
    return folder


@pytest.fixture
def tiny():
    """Makes a GPT-2 of two layers; the seed is the argument."""
    return _tiny


@pytest.fixture
def save():
    """Saves a model as a step: ``save(run, step, model, save_format=..., **arguments of Checkpointer.save)``."""
    return _save


@pytest.fixture
def flip():
    """Flips a bit of one byte of a file."""

    def change(path: Path, index: int = -1) -> None:
        content = bytearray(path.read_bytes())
        content[index] ^= 1
        path.write_bytes(content)

    return change
