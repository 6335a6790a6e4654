"""The optimizer and its schedule as the configuration describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.instantiate import built_arguments, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM, Role
from automodel_cli.train import optimizers
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import ADAMW, DEFAULT_LR, DEFAULT_WEIGHT_DECAY, MUON_ADAMW
from automodel_cli.train.param_groups import Groups, Override, UpdateRule, same_rule
from automodel_cli.train.schedules import Schedule, base_value

Rules = Mapping[Role, UpdateRule]


@dataclass(frozen=True)
class OptimizerSection:
    """What rules are made of: the optimizer's name, its arguments, what it updates, and where it runs."""

    target: Target
    arguments: dict[str, Any]
    model: CausalLM
    mesh: DeviceMesh | None
    device: torch.device
    path: FastPath
    trust: Sequence[str]


def build_optimizer(
    cfg: PretrainConfig,
    model: CausalLM,
    world: World,
    fast_path: FastPath,
    *,
    trust: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """The optimizer that ``optimizer._target_`` names (AdamW without one), its parameters in groups by role and rate.

    Raises:
        ConfigError: an argument that the optimizer does not take, or a value that it refuses.
    """
    target = cfg.optimizer or Target(ADAMW[0])
    section = OptimizerSection(
        target,
        optimizer_arguments(cfg, trust=trust),
        model,
        world.flat_mesh() if cfg.distributed.strategy == "ddp" else None,
        world.device,
        fast_path,
        trust,
    )
    rules = RULES.get(aliases.present_name(target.name), _rules_as_named)(section)
    overrides = [Override(**one.model_dump()) for one in cfg.param_group_overrides]
    return optimizers.build_optimizer(model, rules, overrides)


def _adamw_rules(section: OptimizerSection) -> Rules:
    arguments = {"lr": DEFAULT_LR, "weight_decay": DEFAULT_WEIGHT_DECAY, **section.arguments}
    tables = arguments.pop("decay_embeddings", False)
    if arguments.get("fused") is None:
        arguments["fused"] = section.path.optimizer == "fused"
    build = partial(_build_adamw, section, arguments)
    rule = UpdateRule(build, arguments["lr"], float(arguments["weight_decay"]))
    return same_rule(rule, decay_embeddings=tables)


def _build_adamw(section: OptimizerSection, arguments: Mapping[str, Any], groups: Groups) -> torch.optim.Optimizer:
    try:
        return optimizers.build_adamw(groups, device=section.device, **arguments)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{section.target.where or 'optimizer'}: AdamW refuses its arguments: {error}",
            "correct the optimizer section",
        ) from error


def _muon_rules(section: OptimizerSection) -> Rules:
    make = muon_adamw(**{**section.arguments, "orthogonalization_dtype": section.path.orthogonalization})
    return make(section.model, section.mesh, fused=section.path.optimizer == "fused")


def _rules_as_named(section: OptimizerSection) -> Rules:
    """Any other optimizer of torch, or one of the user's own, for all parameters."""
    arguments = dict(section.arguments)
    tables, weight_decay = arguments.pop("decay_embeddings", False), arguments.pop("weight_decay", 0.0)
    target = replace(section.target, arguments=arguments)

    def build(groups: Groups) -> torch.optim.Optimizer:
        return instantiate(target, "optimizer", inject={"params": groups}, trust=section.trust)

    return same_rule(UpdateRule(build, weight_decay=float(weight_decay)), decay_embeddings=tables)


RULES: dict[str, Callable[[OptimizerSection], Rules]] = {
    **dict.fromkeys(ADAMW, _adamw_rules),
    MUON_ADAMW: _muon_rules,
}
"""What updates the parameters of each role, by the optimizer's name; others update all that there are."""


def optimizer_arguments(cfg: PretrainConfig, *, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The optimizer section's arguments with their values of the types that the optimizer takes.

    Raises:
        ConfigError: an argument that it does not take.
    """
    return {} if cfg.optimizer is None else built_arguments(cfg.optimizer, "optimizer", trust=trust)


def build_schedule(cfg: PretrainConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> Schedule:
    """The learning-rate schedule; constant where the section is absent."""
    lr = base_value(optimizer, "lr")
    if cfg.lr_scheduler is None:
        return Schedule(max_lr=lr)
    if cfg.step_scheduler.max_minutes is not None:
        total_steps = cfg.lr_scheduler.lr_decay_steps or total_steps
    keys = cfg.lr_scheduler.model_dump(exclude={"use_checkpoint_opt_param_scheduler", "override_opt_param_scheduler"})
    return Schedule.from_keys(
        lr=lr, weight_decay=base_value(optimizer, "weight_decay"), total_steps=total_steps, **keys
    )
