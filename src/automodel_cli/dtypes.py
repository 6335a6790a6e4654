"""Number types by name: ``bf16``, ``bfloat16`` and ``torch.bfloat16`` are one.

Nothing here imports torch before a ``torch.dtype`` is asked for: the configuration and ``--help`` need names alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LONG_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""The precisions that a run computes in, and torch's names for them."""

PRECISIONS = tuple(LONG_NAMES)

_SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()} | {"half": "fp16", "float": "fp32"}


def short_name(value: Any) -> Any:
    """``bf16`` for ``bfloat16``, ``torch.bfloat16``, ``bf16`` and the dtype itself; other values pass unchanged."""
    name = str(value).removeprefix("torch.")
    return name if name in LONG_NAMES else _SHORT_NAMES.get(name, value)


def torch_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype | None:
    """The ``torch.dtype`` that a name means (any of torch's, or a short one); None where it means none."""
    import torch

    plain = name.removeprefix("torch.")
    found = getattr(torch, LONG_NAMES.get(plain, plain), None)
    return found if isinstance(found, torch.dtype) else None


def autocast_dtype(precision: str | None) -> torch.dtype | None:
    """What autocast computes in at this precision; None: fp32, no autocast."""
    return None if precision in (None, "fp32") else torch_dtype(precision)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """The context in which matrix products compute in ``dtype``; None: as the weights are."""
    import torch

    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
