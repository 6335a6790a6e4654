"""Optimizers of a run: AdamW with the fastest kernel that the device has, and several optimizers as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from automodel_cli.models.interface import CausalLM, Role
from automodel_cli.train.param_groups import Override, UpdateRule, build_param_groups
from automodel_cli.train.schedules import store_lr_multipliers

DEFAULT_LR = 2e-4
DEFAULT_WEIGHT_DECAY = 0.1
ADAMW = ("torch.optim.AdamW", "torch.optim.adamw.AdamW")

MUON_ADAMW = "automodel_cli.train.muon.rules.muon_adamw"

# Devices with a fused AdamW kernel: one pass over weights, gradients and moments instead of about ten.
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_kernel(device_type: str, name: str = ADAMW[0], arguments: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """(fused | foreach | loop, why): how AdamW updates its tensors; ("own", why) for an optimizer of another ``name``.

    ``arguments`` are AdamW's, with their types right; the rule is torch's (``_default_to_fused_or_foreach``), but that
    fused comes first.
    """
    if name == MUON_ADAMW and device_type in _FUSED_DEVICES:
        return "fused", "of AdamW, which updates what is no matrix"
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
    lr: float = DEFAULT_LR,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = DEFAULT_WEIGHT_DECAY,
    device: torch.device | str = "cpu",
    **options: Any,
) -> torch.optim.AdamW:
    """``torch.optim.AdamW``, fused where it exists. Groups keep their own ``weight_decay`` and ``lr``.

    ``options`` are AdamW's other arguments; ``fused`` or ``foreach`` among them decide about the kernel.
    """
    if options.get("fused") is None:
        options["fused"] = pick_kernel(torch.device(device).type, arguments=options)[0] == "fused"
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, **options)


def build_optimizer(
    model: CausalLM, rules: Mapping[Role, UpdateRule], overrides: Sequence[Override] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a model whose parameters are updated by ``rules``: one, or several as one.

    Raises:
        ConfigError: an override has a bad expression, or matches nothing.
    """
    parts = [build(groups) for build, groups in build_param_groups(model, rules, overrides).items()]
    optimizer = parts[0] if len(parts) == 1 else CombinedOptimizer(parts)
    store_lr_multipliers(optimizer)
    return optimizer


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one, each for groups of its own, with one list of groups and one state.

    Schedule, clipping and checkpoint see an ordinary optimizer. ``owners`` has the optimizer of each group.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """Take over the groups and the state of ``parts``."""
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.owners = [part for part in parts for _ in part.param_groups]
        self.parts = parts
        self._step_supports_amp_scaling = all(getattr(part, "_step_supports_amp_scaling", False) for part in parts)
        for part in parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        for part in self.parts:
            part.state = self.state
            part.param_groups = [
                group for group, owner in zip(self.param_groups, self.owners, strict=True) if owner is part
            ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the groups and the state of all."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Let each optimizer update its parameters, or leave them alone where the kernels read ``found_inf``."""
        for part in self.parts:
            for flag in ("found_inf", "grad_scale"):
                setattr(part, flag, getattr(self, flag, None))
            part.step()
