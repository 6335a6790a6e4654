"""Values of stored tensors without torch: every pattern of every type against torch's own reading of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.checkpoint.steps import save_tensors

from automodel_cli.checkpoint.inspect import tensor_values
from automodel_cli.checkpoint.inspect.tensor_values import difference, nonfinite, widen
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.checkpoint.storage.tensor_file import gather


def stored(tmp_path, tensors, *more):
    """The tensors as written to disk and found again; further arguments are the shards of further ranks."""
    writer = StepWriter(tmp_path)
    for rank, (shard, offsets) in enumerate([(tensors, {}), *more]):
        save_tensors(shard, writer, rank=rank, offsets=offsets)
    return {tensor.name: tensor for tensor in gather(sorted((tmp_path / "model").iterdir()))}


ALL_8 = torch.arange(256, dtype=torch.uint8)
ALL_16 = torch.arange(65536, dtype=torch.int32).to(torch.uint16)


@pytest.mark.parametrize(
    "every",
    [
        ALL_8.view(torch.float8_e5m2),
        ALL_8.view(torch.float8_e4m3fn),
        ALL_16.view(torch.bfloat16),
        ALL_16.view(torch.float16),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_every_pattern_means_what_torch_says(tmp_path, every):
    found = stored(tmp_path / "a", {"w": every})["w"]
    expected = every.to(torch.float64)
    assert np.array_equal(widen(found.raw(), found.dtype), expected.numpy(), equal_nan=True)
    assert nonfinite(found) == (int(expected.isnan().sum()), int(expected.isinf().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_nan_and_infinity_are_counted(tmp_path, dtype):
    tensor = torch.zeros(7, dtype=dtype)
    tensor[2], tensor[3], tensor[5] = math.nan, math.inf, -math.inf
    found = stored(tmp_path / "a", {"w": tensor, "ok": torch.ones(3), "i": torch.ones(3, dtype=torch.int64)})
    assert nonfinite(found["w"]) == (1, 2)
    assert nonfinite(found["ok"]) == nonfinite(found["i"]) == (0, 0)


def test_difference_is_that_of_torch(tmp_path):
    torch.manual_seed(0)
    a = torch.randn(5, 7)
    b = a + 0.01 * torch.randn(5, 7)
    pair = stored(tmp_path / "x", {"a": a, "b": b, "half": b.bfloat16(), "s": torch.tensor(2.0)})
    apart = difference(pair["a"], pair["b"])
    assert apart.max_abs == pytest.approx((a - b).abs().max().item(), rel=1e-6)
    assert apart.relative == pytest.approx(((a - b).norm() / a.norm()).item(), rel=1e-5)
    assert difference(pair["a"], pair["a"]).max_abs == 0
    mixed = difference(pair["b"], pair["half"])
    assert mixed.max_abs == pytest.approx((b - b.bfloat16().float()).abs().max().item(), rel=1e-6)
    assert difference(pair["s"], pair["s"]).max_abs == 0


def test_difference_where_values_are_no_numbers(tmp_path):
    odd = torch.tensor([1.0, math.nan, math.inf])
    pair = stored(tmp_path / "x", {"a": odd, "same": odd.clone(), "b": torch.tensor([1.0, 2.0, math.inf])})
    assert difference(pair["a"], pair["same"]).max_abs == 0
    assert difference(pair["a"], pair["b"]).max_abs == math.inf
    zeros = stored(tmp_path / "y", {"a": torch.zeros(2), "b": torch.ones(2)})
    assert difference(zeros["a"], zeros["b"]).relative == math.inf


def test_parts_of_two_ranks_are_one_tensor(tmp_path):
    upper, lower = torch.arange(8.0).reshape(2, 4), torch.arange(8.0, 12.0).reshape(1, 4)
    found = stored(tmp_path / "x", {"w": upper}, ({"w": lower}, {"w": (2, 0)}))["w"]
    assert found.shape == (3, 4) and found.num_bytes == 48
    assert np.array_equal(found.raw(), np.arange(12, dtype=np.float32).reshape(3, 4))


def test_memory_does_not_grow_with_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_values, "_PIECE", 10)
    torch.manual_seed(0)
    a, b = torch.randn(101), torch.randn(101)
    a[57] = math.nan
    pair = stored(tmp_path / "x", {"a": a, "b": b, "c": torch.zeros(101)})
    assert nonfinite(pair["a"]) == (1, 0)
    assert difference(pair["b"], pair["c"]).max_abs == pytest.approx(b.abs().max().item())
