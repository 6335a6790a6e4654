"""Which optimizer updates which parameters, and with which settings: rules by role, cut into parameter groups.

Weight decay pulls matrices towards zero. It is left off 1-D tensors (norms, biases) and off embedding and
position tables, whose rows for rare tokens would otherwise shrink between the updates that use them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

import torch

from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM, Role

Groups = list[dict[str, Any]]
Build = Callable[[Groups], torch.optim.Optimizer]


@dataclass(frozen=True)
class UpdateRule:
    """How the parameters of one role are updated."""

    build: Build  # the optimizer of these groups; roles that name the same one share it
    lr: float | None = None  # learning rate at the schedule's peak; None: whatever ``build`` sets
    weight_decay: float = 0.0  # of tensors with more than one dimension
    decays: bool = True  # False leaves weight decay off
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else the groups carry: betas, momentum


def same_rule(rule: UpdateRule, *, decay_embeddings: bool = False) -> dict[Role, UpdateRule]:
    """Table in which ``rule`` updates every role; ``decay_embeddings`` also decays tables, as nanoGPT does."""
    tables = replace(rule, decays=decay_embeddings)
    return {role: tables if role in ("embedding", "position") else rule for role in get_args(Role)}


class Override(NamedTuple):
    """Factors for the parameters in whose name a regular expression is found; those of several multiply."""

    pattern: str
    lr_mult: float = 1.0
    wd_mult: float = 1.0


def build_param_groups(
    model: CausalLM, rules: Mapping[Role, UpdateRule], overrides: Sequence[Override] = ()
) -> dict[Build, Groups]:
    """The groups for each optimizer to be built.

    A group's ``lr_mult`` and ``wd_mult`` are its learning rate and weight decay as multiples of the matrices': one
    schedule moves all groups by them.

    Raises:
        ConfigError: an override has a bad expression, or matches nothing.
    """
    patterns = _compiled(overrides, [name for name, _ in model.named_parameters()])
    roles = model.param_roles()
    found: dict[Any, tuple[UpdateRule, float, float, list[torch.nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = rules[roles[name]]
        lr_mult, wd_mult = 1.0, 1.0 if parameter.dim() > 1 and rule.decays else 0.0
        for pattern, override in zip(patterns, overrides, strict=True):
            if pattern.search(name):
                lr_mult, wd_mult = lr_mult * override.lr_mult, wd_mult * override.wd_mult
        key = rule.build, rule.lr, rule.weight_decay, repr(rule.settings), lr_mult, wd_mult
        found.setdefault(key, (rule, lr_mult, wd_mult, []))[-1].append(parameter)
    groups: dict[Build, Groups] = {}
    for rule, lr_mult, wd_mult, parameters in found.values():
        group = _group(rule, rules["matrix"], lr_mult, wd_mult)
        groups.setdefault(rule.build, []).append({**group, "params": parameters})
    return groups


def _group(rule: UpdateRule, base: UpdateRule, lr_mult: float, wd_mult: float) -> dict[str, Any]:
    lr_ratio = rule.lr / base.lr if rule.lr is not None and base.lr else 1.0
    wd_ratio = rule.weight_decay / base.weight_decay if base.weight_decay else 1.0
    own = {} if rule.lr is None else {"lr": rule.lr * lr_mult}
    return {
        **own,
        "weight_decay": rule.weight_decay * wd_mult,
        "lr_mult": lr_mult * lr_ratio,
        "wd_mult": wd_mult * wd_ratio,
        **rule.settings,
    }


def _compiled(overrides: Sequence[Override], names: list[str]) -> list[re.Pattern[str]]:
    patterns = []
    for index, override in enumerate(overrides):
        where = f"param_group_overrides[{index}].pattern"
        try:
            pattern = re.compile(override.pattern)
        except re.error as error:
            raise ConfigError(f"{where} is not a regular expression: {error}", "correct the pattern") from None
        if not any(pattern.search(name) for name in names):
            raise ConfigError(
                f"{where} {override.pattern!r} matches no parameter",
                f"parameter names look like {', '.join(names[:3])}",
            )
        patterns.append(pattern)
    return patterns
