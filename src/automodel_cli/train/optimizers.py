"""Optimizers by name, with the fastest kernel that the device has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from automodel_cli.train.schedules import store_lr_multipliers

ADAMW = ("torch.optim.AdamW", "torch.optim.adamw.AdamW")

# Devices with a fused AdamW kernel: one pass over weights, gradients and moments instead of about ten.
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_kernel(
    device_type: str, name: str = ADAMW[0], arguments: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """(fused | foreach | loop, why): how AdamW updates its tensors; ("own", why) for an optimizer of another ``name``.

    ``arguments`` are AdamW's, with their types right; the rule is torch's (``_default_to_fused_or_foreach``), but that
    fused comes first.
    """
    if name not in ADAMW:
        return "own", f"{name.rpartition('.')[2]} as it is written"
    given = arguments or {}
    told = "as the optimizer section says"
    if given.get("fused"):
        return "fused", told
    if given.get("foreach") or given.get("differentiable"):
        return ("foreach" if given.get("foreach") else "loop"), told
    if given.get("fused") is None and device_type in _FUSED_DEVICES:
        return "fused", "one pass over weights, gradients and moments"
    why = f"{device_type} has no fused kernel" if given.get("fused") is None else told
    return ("loop" if device_type == "cpu" or given.get("foreach") is False else "foreach"), why


def build_adamw(
    groups: Iterable[dict[str, Any]] | Iterable[Tensor],
    lr: float = 2e-4,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    device: torch.device | str = "cpu",
    **options: Any,
) -> torch.optim.AdamW:
    """``torch.optim.AdamW``, fused where it exists. Groups keep their own ``weight_decay`` and ``lr``.

    ``options`` are AdamW's other arguments; ``fused`` or ``foreach`` among them decide about the kernel.
    """
    if options.get("fused") is None:
        options["fused"] = pick_kernel(torch.device(device).type, arguments=options)[0] == "fused"
    own: list[Any] = [_with_lr(group, lr) if isinstance(group, dict) else group for group in groups]
    optimizer = torch.optim.AdamW(
        own, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, **options
    )
    store_lr_multipliers(optimizer)
    return optimizer


def _with_lr(group: dict[str, Any], lr: float) -> dict[str, Any]:
    return {"lr": lr * group.get("lr_mult", 1.0), **group}
