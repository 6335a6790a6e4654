"""What a save writes: names without wrappers, ties once, copies that training cannot reach."""

from __future__ import annotations

import math

import pytest
import torch
from tests.checkpoint import many_ranks
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from automodel_cli.checkpoint import snapshot
from automodel_cli.distributed.world import World

ONE = World.single()


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plain = set(model.state_dict())
    model[0] = checkpoint_wrapper(model[0])
    model[1] = torch.compile(model[1], backend="eager")
    assert set(snapshot.model_tensors(model)) == plain
    assert set(snapshot.names_by_id(model).values()) == plain


def test_parts_documents_and_shapes_of_a_model_and_its_optimizer():
    model = many_ranks.make(ONE)
    optimizer = many_ranks.optimizer_of(model)
    many_ranks.update(model, optimizer)
    taken = snapshot.take(model, optimizer, ONE, what="testing")
    names = dict(model.named_parameters())
    assert taken.shards["model"].keys() == names.keys()
    assert taken.shards["optim"].keys() == {f"{key}/{name}" for key in ("exp_avg", "exp_avg_sq") for name in names}
    assert taken.shapes["model"]["wpe.weight"] == ["F32", [17, 24]]
    assert taken.documents["model/config.json"] == model.model_config()
    assert taken.documents["optim/optimizer.json"]["class"] == "torch.optim.adamw.AdamW"
    assert taken.shards["model"]["wpe.weight"].values.data_ptr() == model.wpe.weight.data_ptr()


def test_staged_values_are_copies_and_documents_too():
    model = many_ranks.make(ONE)
    taken = snapshot.take(model, None, ONE, what="testing")
    staged = taken.staged(snapshot.Staging())
    before = model.wte.weight.detach().clone()
    with torch.no_grad():
        model.wte.weight.zero_()
    model.config.n_layer = 99
    assert torch.equal(staged.shards["model"]["wte.weight"].values, before)
    assert staged.documents["model/config.json"]["n_layer"] == 2


def test_a_save_after_a_reservation_makes_no_buffer(monkeypatch):
    model = many_ranks.make(ONE)
    taken = snapshot.take(model, None, ONE, what="testing")
    staging = snapshot.Staging()
    taken.reserve(staging)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a buffer was made"))
        staged = taken.staged(staging)
    values = staged.shards["model"]["wte.weight"].values
    assert torch.equal(values, model.wte.weight) and values.data_ptr() != model.wte.weight.data_ptr()


def test_the_next_save_takes_the_same_buffers():
    model, staging = many_ranks.make(ONE), snapshot.Staging()
    taken = snapshot.take(model, None, ONE, what="testing")
    first, second = (
        {name: shard.values.data_ptr() for name, shard in taken.staged(staging).shards["model"].items()}
        for _ in range(2)
    )
    assert first == second and first.keys() == dict(model.named_parameters()).keys()
    assert not set(first.values()) & {parameter.data_ptr() for parameter in model.parameters()}


def test_only_the_same_memory_is_a_tie():
    tensor = torch.ones(2, 3)
    tensors = {"a": tensor, "b": tensor, "c": tensor.t(), "d": tensor[:1], "e": tensor.clone()}
    kept, ties = snapshot.untied(tensors, ONE)
    assert list(kept) == ["a", "c", "d", "e"] and ties == {"b": "a"}


def test_a_tie_is_stored_under_the_first_name():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    tensors, ties = snapshot.untied(snapshot.model_tensors(model), ONE)
    assert list(tensors) == ["embed.weight"] and ties == {"head.weight": "embed.weight"}


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), -math.inf))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
            self.register_parameter(name, nn.Parameter(torch.full((3, 4), 1e4, dtype=dtype)))


@pytest.mark.parametrize("name", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_odd_value_is_found(name, value):
    model = Odd()
    assert snapshot.nonfinite_parameters(model) == []
    with torch.no_grad():
        getattr(model, name)[2, 3] = value
    assert snapshot.nonfinite_parameters(model) == [name]


def test_a_model_without_floating_point_parameters():
    assert snapshot.nonfinite_parameters(nn.Module()) == []
