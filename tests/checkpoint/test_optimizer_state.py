"""Any optimizer as tensors and JSON: exotic values, another run's optimizer, settings that changed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from automodel_cli.checkpoint import optimizer_state
from automodel_cli.errors import CheckpointError


class Odd(torch.optim.Optimizer):
    """Keeps everything that an optimizer might: scalars, lists, tuples, mappings, state in its groups."""

    def __init__(self, params, lr: float = 0.1, momentum: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "distance": 1e-6})

    def step(self, closure=None):
        for group in self.param_groups:
            group["distance"] *= 2
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                state["count"] = torch.tensor(state["step"], dtype=torch.int64)
                state["history"] = [parameter.detach().clone(), None, torch.ones(2, dtype=torch.bfloat16)]
                state["limits"] = (-math.inf, 1.5, {"inner": torch.arange(3.0)})
                state["kept_in_double"] = parameter.detach().double() * math.pi


def model_of(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size, size) for size in sizes))


def names_of(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def carried_over(source, source_model, target, target_model) -> list[str]:
    """Flatten one optimizer, through JSON, into another; the reported changes."""
    flat = optimizer_state.flatten(source, names_of(source_model))
    document = json.loads(json.dumps(flat.document, allow_nan=False))
    optimizer_state.check_fits(document, target, names_of(target_model))
    copies = {name: tensor.clone() for name, tensor in flat.tensors.items()}
    return optimizer_state.restore(document, copies, target, names_of(target_model))


def test_values_of_every_kind_come_back():
    model, other = model_of(2), model_of(2)
    optimizer, target = Odd(model.parameters()), Odd(other.parameters())
    optimizer.step()
    optimizer.step()
    assert carried_over(optimizer, model, target, other) == []
    for mine, theirs in zip(optimizer.state.values(), target.state.values(), strict=True):
        assert theirs["step"] == 2 and isinstance(theirs["step"], int)
        assert theirs["count"].dtype == torch.int64 and theirs["count"].item() == 2
        assert torch.equal(theirs["history"][0], mine["history"][0]) and theirs["history"][1] is None
        assert isinstance(theirs["limits"], tuple) and theirs["limits"][:2] == (-math.inf, 1.5)
        assert torch.equal(theirs["limits"][2]["inner"], torch.arange(3.0))
        assert theirs["kept_in_double"].dtype == torch.float64, "load_state_dict alone would make it float32"
        assert torch.equal(theirs["kept_in_double"], mine["kept_in_double"])
    assert target.param_groups[0]["distance"] == pytest.approx(4e-6), "state kept in a group is state"


def test_names_say_what_a_tensor_is():
    model = model_of(2)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    flat = optimizer_state.flatten(optimizer, names_of(model))
    assert set(flat.tensors) == {f"{key}/0.{p}" for key in ("exp_avg", "exp_avg_sq") for p in ("weight", "bias")}
    assert flat.document["class"] == "torch.optim.adamw.AdamW"
    assert flat.document["state"]["0.bias"]["step"] == {"$scalar": 1.0, "$dtype": "F32"}


def test_the_runs_own_settings_win_and_are_reported():
    model, other = model_of(2), model_of(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    target = torch.optim.AdamW(other.parameters(), lr=0.2, weight_decay=0.3, betas=(0.9, 0.95))
    assert carried_over(optimizer, model, target, other) == ["optimizer group 0: weight_decay is now 0.3, was 0.1"]
    assert target.param_groups[0]["lr"] == 0.2 and target.param_groups[0]["weight_decay"] == 0.3


def test_groups_may_be_cut_differently():
    model, other = model_of(2, 2), model_of(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number)
    optimizer.step()
    by_dim = [[p for p in other.parameters() if p.dim() == dim] for dim in (2, 1)]
    target = torch.optim.SGD([{"params": group} for group in by_dim], lr=0.1, momentum=0.9)
    assert "groups: now 2, were 1" in carried_over(optimizer, model, target, other)[0]
    for (_, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], target.state[theirs]["momentum_buffer"])


def test_parameters_without_state_stay_without():
    model, other = model_of(2, 2), model_of(2, 2)
    optimizer, target = torch.optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    model[0].weight.grad = torch.ones(2, 2)
    optimizer.step()
    carried_over(optimizer, model, target, other)
    assert list(target.state) == [other[0].weight]


def test_another_optimizer_or_other_parameters_are_refused():
    model = model_of(2)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(CheckpointError, match=r"state of torch\.optim\.adam\.Adam, this run has .*SGD"):
        carried_over(adam, model, torch.optim.SGD(model.parameters()), model)
    bigger = model_of(2, 3)
    with pytest.raises(CheckpointError, match=r"0 only in the checkpoint.*2 only in this run \(1\.bias, 1\.weight\)"):
        carried_over(adam, model, torch.optim.Adam(bigger.parameters()), bigger)


def test_what_needs_pickle_is_refused():
    model = model_of(2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    optimizer.state[model[0].weight]["callback"] = print
    with pytest.raises(CheckpointError, match=r"builtin_function_or_method in 'callback/0\.weight'"):
        optimizer_state.flatten(optimizer, names_of(model))


def test_a_tensor_that_the_document_names_must_be_there():
    model = model_of(2)
    optimizer = Odd(model.parameters())
    optimizer.step()
    flat = optimizer_state.flatten(optimizer, names_of(model))
    with pytest.raises(CheckpointError, match="is not in the checkpoint"):
        optimizer_state.restore(flat.document, {}, optimizer, names_of(model))


def test_amsgrad_switched_on_is_refused_and_switched_off_is_said(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    names = {id(weight): "w"}

    def trained(amsgrad: bool) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW([weight], amsgrad=amsgrad)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return optimizer

    def taken_up(stored: bool, now: bool) -> list[str]:
        flat = optimizer_state.flatten(trained(stored), names)
        optimizer = torch.optim.AdamW([weight], amsgrad=now)
        changes = optimizer_state.restore(flat.document, flat.tensors, optimizer, names)
        optimizer.step()
        return changes

    assert taken_up(True, True) == taken_up(False, False) == []
    assert taken_up(True, False) == ["optimizer group 0: amsgrad is now False, was True"]
    with pytest.raises(CheckpointError, match=r"'w' lacks 'max_exp_avg_sq'.*amsgrad is now True, was False"):
        taken_up(False, True)


@pytest.mark.parametrize("change", ["missing", "shape", "text"])
def test_a_state_that_is_not_this_optimizers_is_refused(change):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    flat = optimizer_state.flatten(optimizer, {id(weight): "w"})
    if change == "missing":
        del flat.document["state"]["w"]["exp_avg"]
    elif change == "shape":
        flat.tensors["exp_avg/w"] = torch.zeros(2, 3)
    else:
        flat.document["state"]["w"]["step"] = {"$scalar": "many", "$dtype": "F32"}
    with pytest.raises(CheckpointError, match=r"'exp_avg'|optim/optimizer\.json cannot be given to"):
        optimizer_state.restore(flat.document, flat.tensors, torch.optim.AdamW([weight]), {id(weight): "w"})


class OneSided(torch.optim.Optimizer):
    """Keeps a square matrix of a parameter's first side, as Shampoo does."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                side = parameter.shape[0]
                self.state[parameter]["left"] = torch.eye(side)


def test_a_state_that_only_one_side_sizes_is_taken_up():
    weight = torch.nn.Parameter(torch.zeros(3, 8))
    optimizer = OneSided([weight])
    optimizer.step()
    optimizer_state.refuse_incomplete(optimizer, ["w"], [])
