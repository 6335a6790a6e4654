"""Activation checkpointing: a block keeps its input and computes the rest again in the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_MATMULS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.linear.default,
    torch.ops.aten._scaled_mm.default,
)
_ATTENTION = (
    *("scaled_dot_product", "_flash_attention", "_efficient_attention", "cudnn_attention"),
    "flex_attention",  # only where a block is compiled as a whole; compiled alone, it is computed again
)


def recompute(block: nn.Module, how: str, *, random: bool) -> None:
    """Keep little of ``block``'s forward pass; in place.

    Args:
        how: ``full`` keeps the block's input; ``selective`` also what is dear to compute and small to keep: the outputs
            of attention and of every second matrix product.
        random: the block draws random numbers (dropout), which the second pass must repeat.
    """
    forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if how == "selective":
        options["context_fn"] = _selective

    @functools.wraps(forward)
    def forward_with_little_kept(*inputs: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **keywords)
        return checkpoint(forward, *inputs, **options, **keywords)

    block.forward = forward_with_little_kept  # type: ignore[method-assign]


def _selective() -> Any:
    counts = {True: 0, False: 0}  # by whether it is the second pass

    def policy(context: Any, operator: Any, *inputs: Any, **keywords: Any) -> CheckpointPolicy:
        if any(mark in str(operator) for mark in _ATTENTION):
            return CheckpointPolicy.MUST_SAVE
        if operator in _MATMULS:
            counts[context.is_recompute] += 1
            if counts[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
