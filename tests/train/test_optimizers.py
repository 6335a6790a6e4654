"""AdamW as built here against torch's own loop."""

import importlib
import json

import pytest
import torch

from automodel_cli.checkpoint import optimizer_state
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.optimizers import CombinedOptimizer, build_adamw, build_optimizer, pick_kernel
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.schedules import Schedule, base_value
from automodel_cli.train.step import step_if_finite


def run(optimizer, weights):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights])


def parameters():
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(7, 5, generator=generator)) for _ in range(3)]


def test_the_fused_kernel_is_used_and_is_adamw():
    ours, theirs = parameters(), parameters()
    optimizer = build_adamw(ours, lr=0.01, betas=[0.9, 0.95], weight_decay=0.1, device="cpu")
    assert optimizer.defaults["fused"]
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    torch.testing.assert_close(run(optimizer, ours), run(reference, theirs), rtol=1e-5, atol=1e-6)


def test_the_kernel_can_be_chosen():
    assert not build_adamw(parameters(), fused=False).defaults["fused"]
    assert not build_adamw(parameters(), foreach=True).defaults["fused"]
    assert build_adamw(parameters(), amsgrad=True).defaults["fused"]


def test_the_kernel_follows_the_device_and_the_optimizer():
    assert pick_kernel("cpu")[0] == "fused"
    assert pick_kernel("hpu")[0] == "foreach"
    assert pick_kernel("cuda", "torch.optim.SGD") == ("own", "SGD as it is written")


@pytest.mark.parametrize(
    ("arguments", "kernel"),
    [
        ({}, "fused"),
        ({"fused": True}, "fused"),
        ({"foreach": True}, "foreach"),
        ({"fused": False, "foreach": True}, "foreach"),
        ({"fused": False}, "loop"),
        ({"foreach": False}, "fused"),
    ],
)
def test_the_kernel_that_is_named_is_the_one_that_runs(arguments, kernel, monkeypatch):
    """The plan prints `pick_kernel`; torch is watched while it takes a step."""
    ran, module = [], importlib.import_module("torch.optim.adam")
    for name in ("fused", "multi_tensor", "single_tensor"):
        function = getattr(module, f"_{name}_adam")
        watched = lambda *a, _f=function, _n=name, **k: (ran.append(_n), _f(*a, **k))  # noqa: E731
        monkeypatch.setattr(module, f"_{name}_adam", watched)
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = build_adamw([weight], device="cpu", **arguments)
    weight.grad = torch.ones(4)
    with torch.no_grad():
        optimizer.step()
    names = {"fused": "fused", "foreach": "multi_tensor", "loop": "single_tensor"}
    assert pick_kernel("cpu", arguments=arguments)[0] == kernel
    assert ran == [names[kernel]]


class Bare(torch.optim.Optimizer):
    """Has no default learning rate, and keeps a moving average of gradients."""

    def __init__(self, params, momentum=0.5):
        super().__init__(params, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                mean = self.state[one].setdefault("mean", torch.zeros_like(one))
                one.sub_(mean.lerp_(one.grad, 1 - group["momentum"]), alpha=group["lr"])


def two_optimizers():
    model = build_gpt2_model(vocab_size=128, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model.init_weights(0)
    adamw = UpdateRule(build_adamw, lr=0.01, weight_decay=0.1, settings={"betas": (0.8, 0.9)})
    return model, build_optimizer(model, {**same_rule(adamw), "matrix": UpdateRule(Bare, lr=0.1)})


def updates(model, optimizer, steps):
    schedule = Schedule.from_keys(lr=base_value(optimizer, "lr"), total_steps=6, lr_warmup_steps=2)
    for step in steps:
        schedule.apply(optimizer, step)
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step_if_finite(optimizer, torch.tensor(False))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_several_optimizers_are_each_alone_under_one_schedule():
    model, optimizer = two_optimizers()
    assert isinstance(optimizer, CombinedOptimizer)
    alone, _ = two_optimizers()
    roles = alone.param_roles()
    matrices = [one for name, one in alone.named_parameters() if roles[name] == "matrix"]
    tables = [one for name, one in alone.named_parameters() if roles[name] in ("embedding", "position")]
    vectors = [one for one in alone.parameters() if one.dim() == 1]
    schedule = Schedule.from_keys(lr=0.1, total_steps=6, lr_warmup_steps=2)
    parts = [
        Bare([{"params": matrices, "lr": 0.1}]),
        build_adamw(tables + vectors, lr=0.01, betas=(0.8, 0.9), weight_decay=0.0),
    ]
    for step in range(6):
        parts[0].param_groups[0]["lr"] = schedule.lr(step)
        parts[1].param_groups[0]["lr"] = schedule.lr(step) * 0.1
        generator = torch.Generator().manual_seed(step)
        for parameter in alone.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for part in parts:
            part.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in alone.parameters()])
    torch.testing.assert_close(updates(model, optimizer, range(6)), expected)


def test_several_optimizers_go_on_from_their_checkpoint_bitwise():
    model, optimizer = two_optimizers()
    whole = updates(model, optimizer, range(6))
    model, optimizer = two_optimizers()
    updates(model, optimizer, range(3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    flat = optimizer_state.flatten(optimizer, names)
    document, weights = json.loads(json.dumps(flat.document)), model.state_dict()
    model, optimizer = two_optimizers()
    model.load_state_dict(weights)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer_state.check_fits(document, optimizer, names)
    assert optimizer_state.restore(document, flat.tensors, optimizer, names) == []
    assert torch.equal(updates(model, optimizer, range(3, 6)), whole)
