"""Number types by name."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.dtypes import autocast_dtype, short_name, torch_dtype


@pytest.mark.parametrize(
    ("given", "short"),
    [("bf16", "bf16"), ("bfloat16", "bf16"), ("torch.bfloat16", "bf16"), (torch.bfloat16, "bf16"),
     ("half", "fp16"), ("float", "fp32"), ("auto", "auto"), ("int8", "int8"), (None, None), (8, 8)],
)  # fmt: skip
def test_short_name(given, short):
    assert short_name(given) == short


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("torch.float64", torch.float64), ("fp32", torch.float32), ("nn", None)],
)
def test_torch_dtype(name, dtype):
    assert torch_dtype(name) is dtype


def test_autocast_dtype_of_fp32_is_none():
    names = ("bf16", "fp16", "fp32", None)
    assert list(map(autocast_dtype, names)) == [torch.bfloat16, torch.float16, None, None]
