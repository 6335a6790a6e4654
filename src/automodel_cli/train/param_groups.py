"""Which parameters share a weight decay and a learning-rate multiplier.

Weight decay pulls matrices towards zero. It is left off 1-D tensors (norms, biases) and off embedding and
position tables, whose rows for rare tokens would otherwise shrink between the updates that use them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM

_TABLES = ("embedding", "position")
_OVERRIDE_KEYS = {"pattern", "lr_mult", "wd_mult"}


def build_param_groups(
    model: CausalLM,
    *,
    weight_decay: float,
    decay_embeddings: bool = False,
    overrides: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; each carries ``lr_mult`` and ``wd_mult``, which the schedule keeps.

    Args:
        weight_decay: of the groups that decay.
        decay_embeddings: also decay embedding and position tables (as nanoGPT does).
        overrides: ``{pattern, lr_mult, wd_mult}``: parameters whose name the regular expression matches
        anywhere
            have their multipliers multiplied by these; several patterns may match one parameter.

    Raises:
        ConfigError: an override has unknown keys, a bad expression or number, or matches nothing.
    """
    rules = _checked(overrides or [], [name for name, _ in model.named_parameters()])
    roles = model.param_roles()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        table = roles[name] in _TABLES
        decays = parameter.dim() > 1 and (decay_embeddings or not table)
        lr_mult, wd_mult = 1.0, 1.0 if decays else 0.0
        for pattern, lr_factor, wd_factor in rules:
            if pattern.search(name):
                lr_mult, wd_mult = lr_mult * lr_factor, wd_mult * wd_factor
        groups.setdefault((lr_mult, wd_mult), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay * wd_mult, "lr_mult": lr_mult, "wd_mult": wd_mult}
        for (lr_mult, wd_mult), parameters in groups.items()
    ]


def _checked(
    overrides: Sequence[Mapping[str, Any]], names: list[str]
) -> list[tuple[re.Pattern[str], float, float]]:
    rules = []
    for index, override in enumerate(overrides):
        where = f"param_group_overrides[{index}]"
        if unknown := sorted(set(override) - _OVERRIDE_KEYS):
            raise ConfigError(
                f"{where} has unknown keys {', '.join(unknown)}", "its keys are pattern, lr_mult, wd_mult"
            )
        try:
            pattern = re.compile(override["pattern"])
        except (KeyError, TypeError, re.error) as error:
            raise ConfigError(
                f"{where}.pattern is not a regular expression: {error}", "correct the pattern"
            ) from None
        if not any(pattern.search(name) for name in names):
            raise ConfigError(
                f"{where}.pattern {override['pattern']!r} matches no parameter",
                f"parameter names look like {', '.join(names[:3])}",
            )
        rules.append(
            (pattern, _multiplier(override, "lr_mult", where), _multiplier(override, "wd_mult", where))
        )
    return rules


def _multiplier(override: Mapping[str, Any], key: str, where: str) -> float:
    value = override.get(key, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(
            f"{where}.{key} is {value!r}, expected a number of at least 0", "correct the number"
        )
    return float(value)
