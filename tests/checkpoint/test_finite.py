"""Parameters that are no numbers are found by name, in any type; buffers may hold what they like."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from automodel_cli.checkpoint.finite import nonfinite_parameters


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
    assert nonfinite_parameters(model) == []
    with torch.no_grad():
        getattr(model, name)[2, 3] = value
    assert nonfinite_parameters(model) == [name]


def test_a_model_without_floating_point_parameters():
    assert nonfinite_parameters(nn.Module()) == []
