"""The average of the weights on a GPU: the numbers of a CPU, and nobody waits for the device."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.train.averaging import AverageRule, WeightAverage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_an_update_waits_for_nothing_and_gives_the_numbers_of_a_cpu():
    weights = {"one": torch.randn(33, 7), "two": torch.randn(5)}
    here = {name: tensor.cuda() for name, tensor in weights.items()}
    averages = [WeightAverage(torch.nn.Module(), of, AverageRule(0.9)) for of in (weights, here)]
    flags = torch.tensor([False, True, False, False])
    on_device = flags.cuda()
    for step in range(1, 5):
        for name, tensor in weights.items():
            tensor.add_(1)
            here[name].copy_(tensor)
        averages[0].update(step, flags[step - 1])
        torch.cuda.set_sync_debug_mode("error")
        try:
            averages[1].update(step, on_device[step - 1])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert averages[1].count == averages[0].count == 3
    for name, tensor in averages[0].tensors.items():
        torch.testing.assert_close(averages[1].tensors[name].cpu(), tensor)
