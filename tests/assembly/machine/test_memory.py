"""What the start-up table says of memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from automodel_cli.assembly.machine import memory
from automodel_cli.assembly.machine.memory import DeviceMemory
from automodel_cli.config.targets.target import Target
from automodel_cli.distributed.world import World
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule

GIB = 1 << 30


def test_the_line_of_the_table():
    peak = PeakMemory("loss", weights=2 * GIB, moments=4 * GIB)
    line = "about 6.0 GiB at the peak (weights 2.0 GiB, moments 4.0 GiB)"
    assert memory.row(peak, None) == ("memory", line)
    has = DeviceMemory(total=8 * GIB, free=7 * GIB)
    assert memory.row(peak, has) == ("memory", f"{line}; the device has 8.0 GiB, 7.0 GiB free")
    assert "not known" in memory.row(None, has)[1]


def test_a_note_where_it_does_not_fit():
    peak = PeakMemory("loss", weights=2 * GIB, process=GIB)
    assert memory.notes(peak, DeviceMemory(8 * GIB, free=2 * GIB, resident=GIB)) == []
    (note,) = memory.notes(peak, DeviceMemory(8 * GIB, free=GIB, resident=GIB))
    assert note.startswith("a step needs about 3.0 GiB of memory and 2.0 GiB are free")
    assert memory.notes(None, None) == []


@pytest.mark.parametrize(
    ("name", "arguments", "number"),
    [
        ("torch.optim.AdamW", {}, 2),
        ("torch.optim.AdamW", {"amsgrad": True}, 3),
        ("torch.optim.SGD", {}, 0),
        ("torch.optim.SGD", {"momentum": 0.9}, 1),
        ("torch.optim.Adafactor", {}, 0),
        ("my.Own", {}, 2),
    ],
)
def test_numbers_that_optimizers_keep(name, arguments, number):
    assert memory.moments(Target(name, arguments)) == number
    assert memory.moments(None) == 2


@pytest.mark.parametrize(
    ("name", "device", "precision", "seq_len", "keeps"),
    [
        ("auto", "cpu", "bf16", 1024, "matmul"),
        ("auto", "cpu", "bf16", 2048, "linear"),
        ("auto", "cpu", "fp32", 1024, "linear"),
        ("auto", "cuda", "bf16", 1024, "linear"),
        ("eager", "cuda", "bf16", 1024, "eager"),
        ("matmul", "cuda", "bf16", 1024, "matmul"),
    ],
)
def test_what_attention_keeps(name, device, precision, seq_len, keeps):
    model = build_gpt2_model(n_layer=1, attn_implementation=name, is_meta_device=True)
    found = memory.attention_keeps(model, device=device, precision=precision, seq_len=seq_len)
    assert found == keeps


def test_this_machine_has_memory():
    found = memory.probe_device_memory(World.single())
    assert found.total > found.free > 0
    assert 10 << 20 < found.resident < found.total


@pytest.mark.parametrize("name", ["torch.optim.AdamW", "muon_adamw"])
def test_numbers_of_a_checkpoint_are_those_of_weights_and_state(name):
    """Without counts of steps; the average of weights is one more of each."""
    model = build_gpt2_model(vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    rules = muon_adamw()(model) if name == "muon_adamw" else same_rule(UpdateRule(build_adamw, 1e-3))
    optimizer = build_optimizer(model, rules)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [value.numel() for state in optimizer.state.values() for value in state.values() if value.dim()]
    weights = sum(parameter.numel() for parameter in model.parameters())
    cfg = SimpleNamespace(optimizer=Target(name), ema=None)
    assert memory.numbers_kept(cfg, model) == weights + sum(kept)
    assert memory.numbers_kept(SimpleNamespace(optimizer=Target(name), ema={}), model) == 2 * weights + sum(kept)
