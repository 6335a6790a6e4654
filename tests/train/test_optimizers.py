"""AdamW as built here against torch's own loop."""

import importlib

import pytest
import torch

from automodel_cli.train.optimizers import build_adamw, pick_kernel


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
    reference = torch.optim.AdamW(
        theirs, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    torch.testing.assert_close(run(optimizer, ours), run(reference, theirs), rtol=1e-5, atol=1e-6)


def test_groups_keep_what_they_say():
    weights = parameters()
    groups = [
        {"params": weights[:1], "weight_decay": 0.0, "lr_mult": 0.5, "wd_mult": 0.0},
        {"params": weights[1:], "weight_decay": 0.1, "lr_mult": 1.0, "wd_mult": 1.0},
    ]
    optimizer = build_adamw(groups, lr=0.02, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.01, 0.0),
        (0.02, 0.1),
    ]
    assert "lr" not in groups[0]  # the caller's dictionaries are not changed


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
