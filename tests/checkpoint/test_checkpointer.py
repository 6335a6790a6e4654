"""Saving and loading a run: bitwise round trips, damage found by name, kills at every instant, retention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from automodel_cli.checkpoint.checkpointer import Checkpointer


class TinyModel(nn.Module):
    """An embedding tied to its head, a matrix, a norm, a buffer and a bfloat16 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 6)
        self.proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 16, bias=False)
        self.head.weight = self.embed.weight
        self.gate = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
        self.register_buffer("steps_seen", torch.tensor(3, dtype=torch.int64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.proj(self.embed(ids)) * self.gate.float()))

    def model_config(self) -> dict:
        return {"family": "tiny", "vocab_size": 16}

    def param_roles(self) -> dict[str, str]:
        return {"embed.weight": "embedding", "proj.weight": "matrix"}


def make_model(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel()


def make_muon(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Muon([parameter for parameter in model.parameters() if parameter.dim() == 2], lr=0.01)


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95)),
    "adamw_fused": lambda model: torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.dtype == torch.float32], fused=True
    ),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True),
    "sgd_momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "sgd_plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "muon": make_muon,
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
    "nadam": lambda model: torch.optim.NAdam(model.parameters()),
    "rprop": lambda model: torch.optim.Rprop(model.parameters()),
    "asgd": lambda model: torch.optim.ASGD(model.parameters()),
    "lbfgs": lambda model: torch.optim.LBFGS(
        [parameter for parameter in model.parameters() if parameter.dtype == torch.float32], max_iter=2
    ),
    "capturable_lr": lambda model: torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(1e-3), foreach=False
    ),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int = 0) -> list[float]:
    """A few updates on random ids; the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 16, (2, 5), generator=generator)

        def closure(ids: torch.Tensor = ids) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def save(checkpointer: Checkpointer, step: int, model: nn.Module, optimizer=None, **changes) -> Path:
    arguments = {
        "state": {"tokens_seen": 10 * step},
        "loader_state": {"plan_hash": "abc", "samples_consumed": 4 * step},
        "config_yaml": "seed: 1\n",
        "facts": {
            "model": {"vocab_size": 16},
            "fast_path": {"compile": False},
            "shape": (1, 2),
            "counts": {10: 1, 9: 2},
        },
        "metrics": {"val_loss": 1.0 / step},
    }
    return checkpointer.save(step, model=model, optimizer=optimizer, **{**arguments, **changes})


def same_state(a, b) -> bool:
    """Whether two optimizer state dicts are equal to the bit, types and devices included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_state, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_round_trip_is_bitwise_and_training_goes_on_as_if_undisturbed(tmp_path, kind):
    model = make_model()
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, 3)
    path = save(Checkpointer(tmp_path), 3, model, optimizer)

    other = make_model(seed=1)
    other_optimizer = OPTIMIZERS[kind](other)
    loaded = Checkpointer(tmp_path).load(path, model=other, optimizer=other_optimizer)

    assert same_state(dict(model.state_dict()), dict(other.state_dict()))
    assert same_state(optimizer.state_dict(), other_optimizer.state_dict())
    assert other.head.weight is other.embed.weight
    assert (loaded.step, loaded.state, loaded.changes) == (3, {"tokens_seen": 30}, [])
    assert loaded.loader_state == {"plan_hash": "abc", "samples_consumed": 12}
    assert loaded.metrics == {"val_loss": 1 / 3}
    assert loaded.facts["shape"] == [1, 2] and loaded.facts["counts"] == {"10": 1, "9": 2}
    assert train(model, optimizer, 3, seed=9) == train(other, other_optimizer, 3, seed=9)
    assert same_state(dict(model.state_dict()), dict(other.state_dict()))
