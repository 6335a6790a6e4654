"""Linear layers whose three matrix products run in 8-bit floating point; weights stay stored as they are.

M tokens (B x T), K inputs, N outputs.

    output              y  [M, N] = x [M, K] @ w [N, K]^T     x and w in e4m3 (3 bits of mantissa, up to 448)
    input's gradient    dx [M, K] = g [M, N] @ w [N, K]       g in e5m2 (2 bits of mantissa, up to 57,344)
    weight's gradient   dw [N, K] = g [M, N]^T @ x [M, K]

These are the two formats of Micikevicius et al. 2022 (arXiv 2209.05433). Each tensor has one scale ("tensorwise"),
computed from its largest magnitude when it is used: the largest power of two that keeps every value in range, so that
nothing saturates. Scaling by a power of two rounds nothing; only the cast does. Which other tokens share a tensor, and
hence a scale, then matters to nothing but numbers near zero: micro-batches and ranks hardly change results.

What is not finite stays so: infinity and NaN give a scale of 0 or infinity, and NaN in the products.

All of it is plain tensor code in one ``autograd.Function``: torch.compile traces it whole, fuses scales and casts with
what is around them, and nothing waits for the device. Kept for the backward pass are x in fp8 and the weight itself,
which FSDP may free and gather again; its cast is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from automodel_cli.models.interface import CausalLM

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # matrix units take fp8 operands whose sizes divide by this
_EXPONENT_BITS = 0x7F80_0000  # of an fp32 number; sign and mantissa left out
_SMALLEST_AMAX = 2.0**-96  # a tensor of zeros; scale and 1 / scale stay far from fp32's limits


class Fp8Linear(nn.Linear):
    """An ``nn.Linear`` that trains in fp8 and gives bf16; ``convert`` makes it of one, in place.

    In eval mode it is the ``nn.Linear`` that it was, and so is a checkpoint of it. So it also is for a number of tokens
    that matrix units do not take.
    """

    emulate = False  # fp8's rounding with an ordinary product, for devices without such matrix units

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (x.numel() // self.in_features) % MULTIPLE:
            return super().forward(x)
        y = _Fp8Product.apply(x.reshape(-1, self.in_features), self.weight, self.emulate)
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)


def convert(model: CausalLM, *, filter_fqns: Sequence[str] = (), emulate: bool = False) -> list[str]:
    """Let the layers that are ``suitable`` train in fp8; in place, names of parameters stay. Returns their names."""
    names = suitable(model, filter_fqns)
    for name in names:
        layer = model.get_submodule(name)
        layer.__class__ = Fp8Linear
        layer.emulate = emulate  # type: ignore[assignment]
    return names


def suitable(model: CausalLM, filter_fqns: Sequence[str] = ()) -> list[str]:
    """Names of the blocks' linear layers whose sizes divide by 16.

    Without those whose name contains one of ``filter_fqns``, or matches it with its ``*``.
    """

    def left_out(name: str) -> bool:
        return any(pattern in name or fnmatchcase(name, pattern) for pattern in filter_fqns)

    return [
        name
        for name, layer in block_linears(model).items()
        if not left_out(name) and layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
    ]


def block_linears(model: CausalLM) -> dict[str, nn.Linear]:
    """The linear layers of the model's blocks by name; transformers' ``Conv1D`` and other classes are none."""
    roles = model.param_roles()
    inside = {id(module) for block in model.blocks() for module in block.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and type(module) in (nn.Linear, Fp8Linear) and roles.get(f"{name}.weight") == "matrix"
    }


def power_of_two_scale(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest power of two that keeps ``tensor`` times it in the range of ``dtype``; fp32 scalar."""
    amax = tensor.abs().amax().float().clamp(min=_SMALLEST_AMAX)
    largest = torch.finfo(dtype).max / amax
    return (largest.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)


class _Fp8Product(torch.autograd.Function):
    """x [M, K], weight [N, K] -> [M, N] in bf16; gradients in the dtypes of x and weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, emulate: bool) -> Tensor:
        x_scale, w_scale = power_of_two_scale(x, E4M3), power_of_two_scale(weight, E4M3)
        x8 = (x * x_scale).to(E4M3)
        w8 = (weight * w_scale).to(E4M3)
        ctx.save_for_backward(x8, x_scale, weight, w_scale)
        ctx.emulate, ctx.x_dtype = emulate, x.dtype
        return _product(x8, w8.t(), x_scale, w_scale, torch.bfloat16, emulate=emulate, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x8, x_scale, weight, w_scale = ctx.saved_tensors
        g_scale = power_of_two_scale(g, E5M2)
        g8 = (g * g_scale).to(E5M2)
        w8 = (weight * w_scale).to(E4M3)
        dx = _product(g8, w8, g_scale, w_scale, torch.bfloat16, emulate=ctx.emulate)
        dw = _product(g8.t(), x8, g_scale, x_scale, weight.dtype, emulate=ctx.emulate)
        return dx.to(ctx.x_dtype), dw, None


def _product(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    emulate: bool,
    fast: bool = False,
) -> Tensor:
    """a [m, k] @ b [k, n] without their scales, in ``dtype``; sums in fp32.

    ``fast``: matrix units add up in fewer bits than fp32's 24, which outputs bear and gradients should not.
    """
    if emulate:
        with torch.autocast(a.device.type, enabled=False):
            return ((a.float() @ b.float()) / (a_scale * b_scale)).to(dtype)
    return torch._scaled_mm(
        a.contiguous(),  # by rows
        b.t().contiguous().t(),  # by columns
        scale_a=a_scale.reciprocal(),
        scale_b=b_scale.reciprocal(),
        out_dtype=dtype,
        use_fast_accum=fast,
    )
