"""The average of the weights beside the weights: its formulas, skipped updates, and changing places with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from automodel_cli.train.averaging import AverageRule, WeightAverage

APPLIED, SKIPPED = torch.tensor(False), torch.tensor(True)


def model_of(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)).to(dtype)


def average_of(model: nn.Module, rule: AverageRule) -> WeightAverage:
    return WeightAverage(model, dict(model.named_parameters()), rule)


@torch.no_grad()
def move(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Another set of weights, in fp64."""
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter))
    return {name: one.detach().double() for name, one in model.named_parameters()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_exponential_average_is_the_corrected_sum_and_what_torch_computes_from_the_first_update_on(decay):
    model = model_of()
    average = average_of(model, AverageRule(decay))
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    seen = []
    for step in range(1, 31):
        seen.append(move(model, step))
        average.update(step, APPLIED)
        reference.update_parameters(model)
        shares = [(1 - decay) * decay ** (step - k) / (1 - decay**step) for k in range(1, step + 1)]
        assert math.isclose(sum(shares), 1)
        for name, found in average.tensors.items():
            want = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
            torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
            # torch's begins with the first weights as if they had always been there
            theirs = reference.module.get_parameter(name).double()
            torch.testing.assert_close(
                theirs, want * (1 - decay**step) + decay**step * seen[0][name], rtol=1e-5, atol=1e-5
            )
    assert average.count == 30


def test_the_mean_of_the_last_updates_is_that_of_torch():
    model = model_of()
    average, reference = average_of(model, AverageRule(None, first=6)), None
    for step in range(1, 21):
        move(model, step)
        average.update(step, APPLIED)
        if step >= 6:
            reference = reference or AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
            reference.update_parameters(model)
        assert average.count == max(0, step - 5)
    assert reference is not None
    for name, found in average.tensors.items():
        torch.testing.assert_close(found, reference.module.get_parameter(name).detach(), rtol=1e-6, atol=1e-6)


def test_of_a_group_of_updates_the_last_one_counts():
    tail = AverageRule(None, first=100 - 12 + 1, every=4)
    assert [step for step in range(1, 101) if tail.takes(step)] == [92, 96, 100]
    assert [step for step in range(1, 11) if AverageRule(0.9, every=3).takes(step)] == [3, 6, 9]


def test_a_skipped_update_leaves_the_average_as_it_was_to_the_bit_wherever_it_comes():
    runs = []
    for skips in ((), (1, 2, 5, 9)):
        model, left = model_of(), 0
        average = average_of(model, AverageRule(0.8))
        for step in range(1, 8 + len(skips)):
            skipped = step in skips
            left += skipped
            if not skipped:
                move(model, step - left)
            before = {name: tensor.clone() for name, tensor in average.tensors.items()}
            average.update(step, SKIPPED if skipped else APPLIED)
            if skipped:
                assert all(torch.equal(before[name], tensor) for name, tensor in average.tensors.items())
        assert average.count == 7
        runs.append(average.tensors)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_averages_change_places_and_come_back_to_the_bit(dtype):
    model = model_of(dtype)
    average = average_of(model, AverageRule(0.7))
    for step in range(1, 6):
        move(model, step)
        average.update(step, APPLIED)
    weights = {name: one.detach().clone() for name, one in model.named_parameters()}
    averages = {name: one.clone() for name, one in average.tensors.items()}
    with pytest.raises(RuntimeError, match="in the middle"), average.swapped_in():
        for name, one in model.named_parameters():
            assert torch.equal(one, averages[name].to(dtype)) and not torch.equal(one, weights[name])
        raise RuntimeError("in the middle")
    assert all(torch.equal(one, weights[name]) for name, one in model.named_parameters())
    assert all(torch.equal(one, averages[name]) for name, one in average.tensors.items())


def test_what_is_saved_goes_on_to_the_bit_and_another_rule_begins_anew(tmp_path):
    folder = tmp_path / "step_00000008"
    model = model_of()
    average = average_of(model, AverageRule(None, first=5))
    assert average.saved() == ({}, None)
    for step in range(1, 9):
        move(model, step)
        average.update(step, APPLIED)
    tensors, stored = average.saved()
    again = average_of(model, AverageRule(None, first=5))
    for name, tensor in again.tensors.items():
        tensor.copy_(tensors[name])
    assert again.restore(stored, 8, folder) is None
    move(model, 9)
    for one in (average, again):
        one.update(9, APPLIED)
    assert again.count == 5
    assert all(torch.equal(one, average.tensors[name]) for name, one in again.tensors.items())
    line = average_of(model, AverageRule(0.9)).restore(stored, 8, folder)
    assert line is not None and "begins anew with step 9" in line and "of the updates from 5 on" in line
    later = average_of(model, AverageRule(None, first=15))
    line = later.restore(stored, 8, folder)
    assert line is not None and "begins anew with step 15" in line and later.count == 0
    line = again.restore(None, 8, folder)
    assert line is not None and "begins after step 8" in line and again.count == 0
    assert average_of(model, AverageRule(None, first=9)).restore(None, 8, folder) is None
