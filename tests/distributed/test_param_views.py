"""Parameters shown to a forward pass as something else."""

import pytest
import torch
from torch import nn

from automodel_cli.distributed.param_views import view_parameters


def test_layers_see_the_view_and_gradients_come_back():
    block = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    block[1].weight = block[0].weight  # tied
    calls = []

    def doubled(weight):
        calls.append(1)
        return weight * 2

    x = torch.randn(4, 3)
    expected = x @ (2 * block[0].weight).T @ (2 * block[0].weight).T
    view_parameters(block, {"0.weight": doubled, "1.weight": doubled})
    out = block(x)
    assert torch.allclose(out, expected) and len(calls) == 1  # one view of what is one parameter
    out.sum().backward()
    reference = block[0].weight.detach().clone().requires_grad_()
    (x @ (2 * reference).T @ (2 * reference).T).sum().backward()
    torch.testing.assert_close(block[0].weight.grad, reference.grad)
    assert [name for name, _ in block.named_parameters()] == ["0.weight"]


def test_parameters_are_back_after_an_error():
    layer = nn.Linear(3, 3)
    weight = layer.weight
    view_parameters(layer, {"weight": lambda tensor: tensor[:, :2]})
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 3))
    assert layer.weight is weight
