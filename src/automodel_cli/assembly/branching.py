"""The configuration of a branch: the trunk's, with all that follows from its length held fast, and what is changed.

Defaults like the length of the warm-up are shares of the whole run, and a branch has another length: they are written
out as the trunk used them, so that what lies before the fork stays as it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from automodel_cli.assembly.data import declared_by
from automodel_cli.assembly.facts import Facts, configuration_changes
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.config.horizon import batches_of, configured_seq_len, horizon_of, row_lengths_of
from automodel_cli.config.layers import located
from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.problems import raise_problems
from automodel_cli.config.schema.options import BranchOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.training_sections import HORIZONS
from automodel_cli.config.targets.target import Target, plain
from automodel_cli.config.yaml_tree import read_file
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.mixture.stages import step_of_share
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.json_files import validated
from automodel_cli.train.schedules import Schedule

_CONFIG = "config.yaml"
_MOST_COMPARED = 10_000  # updates of two schedules
_TRUNK, _COOLDOWN = "the trunk", "--cooldown"


@dataclass(frozen=True)
class Trunk:
    """A checkpoint that a run may branch from, and the configuration that led to it."""

    folder: Path  # of the step
    step: int
    facts: Facts
    fingerprint: str  # hash of its manifest
    cfg: PretrainConfig
    schedule: Schedule


def read_trunk(folder: Path, *, trust: Sequence[str] = ()) -> Trunk:
    """What a step folder says of its run.

    Raises:
        CheckpointError: it is damaged, or says nothing of its schedule.
        ConfigError: its configuration is none that this version can read.
    """
    reader = StepReader(folder)
    reader.check(_CONFIG)
    facts = Facts.from_json(reader.manifest["facts"])
    if facts.schedule is None:
        raise CheckpointError(f"{folder} does not say its learning-rate schedule", "it is of an earlier version")
    return Trunk(
        folder=folder,
        step=reader.manifest["step"],
        facts=facts,
        fingerprint=reader.manifest["self"],
        cfg=load_config(PretrainConfig, folder / _CONFIG, trust=trust),
        schedule=validated(dict(facts.schedule), Schedule, folder / layout.MANIFEST, CheckpointError),
    )


def cooldown_steps(step: int, options: BranchOptions) -> int | None:
    """Updates of the decay that a branch at ``step`` ends with: C = D / (step + D); None: the schedule stays."""
    if options.cooldown is None:
        return options.cooldown_steps
    share = Fraction(str(options.cooldown))
    return math.ceil(step * share / (1 - share))


def branch_config(
    trunk: Trunk, options: BranchOptions, overrides: Sequence[str], settings: Mapping[str, Any]
) -> PretrainConfig:
    """The configuration of a branch.

    Args:
        overrides: of the command line, ``--section.key VALUE``.
        settings: by dotted key, what nothing else may change.

    Raises:
        ConfigError: it is wrong, or contradicts itself.
        CheckpointError: there is no cooldown from this checkpoint.
    """
    decay = cooldown_steps(trunk.step, options)
    layers = [located(_held_fast(trunk), _TRUNK)]
    if decay is not None:
        _refuse_cooldown(trunk)
    wished = {} if decay is None else _cooldown(trunk, decay, options.shape)
    layers.append(located(wished, _COOLDOWN))
    if options.config is not None:
        more, problems = read_file(options.config)
        raise_problems(problems)
        layers.append(more)
    source = trunk.folder / _CONFIG
    cfg = load_config(PretrainConfig, source, overrides, settings, over=layers, trust=options.trust)
    _refuse_other_schedule(cfg, wished)
    _refuse_contradictions(cfg, trunk, settings)
    return cfg


def changes_of(trunk: Trunk, cfg: PretrainConfig, *, trust: Sequence[str] = ()) -> list[str]:
    """``key: old -> new`` for each value of the trunk's configuration that a branch changes.

    What followed from the trunk's length and is written out now is no change.
    """
    held = load_config(PretrainConfig, trunk.folder / _CONFIG, over=[located(_held_fast(trunk), _TRUNK)], trust=trust)
    return configuration_changes(to_yaml(held).encode(), cfg, trunk.folder)


def _held_fast(trunk: Trunk) -> dict[str, Any]:
    """Values that followed from the trunk's length, and places that are the trunk's own."""
    held: dict[str, Any] = {"checkpoint": {"restore_from": None, "push_to_hub": None}}
    if trunk.cfg.wandb is not None:
        held["wandb"] = {"id": None}
    if (written := trunk.cfg.lr_scheduler) is not None:
        held["lr_scheduler"] = {"lr_warmup_steps": trunk.schedule.warmup_steps}
        if written.start_wd is not None or written.end_wd is not None:
            held["lr_scheduler"]["wd_incr_steps"] = trunk.schedule.wd_incr_steps
    steps, kind = horizon_of(trunk.cfg).steps, declared_by(trunk.cfg.dataset)
    if kind is Mixture and steps is not None and trunk.cfg.dataset.arguments.get("stages"):
        held["dataset"] = {"stages": _stages_in_steps(trunk.cfg.dataset, steps, batches_of(trunk.cfg))}
    if kind is MegatronPretraining and trunk.cfg.dataset.arguments.get("trainer_max_steps") is None:
        held["dataset"] = {"trainer_max_steps": steps}
    if schedules := _schedules_in_steps(trunk.cfg):
        held["step_scheduler"] = schedules
    return held


def _schedules_in_steps(cfg: PretrainConfig) -> dict[str, Any]:
    """Batch sizes and row lengths before the last, with the step that each ends with."""
    sizes, seq_len = batches_of(cfg), configured_seq_len(cfg)
    lengths = row_lengths_of(cfg, seq_len) if seq_len is not None else None
    given = {"batch_size_schedule": ("size", sizes), "seq_len_schedule": ("seq_len", lengths)}
    return {
        key: [
            {"until_step": sizes.updates(end), name: number}
            for (_, number), (end, _) in itertools.pairwise(numbers.stages)
        ]
        for key, (name, numbers) in given.items()
        if numbers is not None and numbers.changes
    }


def _stages_in_steps(dataset: Target, steps: int, sizes: BatchSizes) -> list[dict[str, Any]]:
    """The stages of a mixture, those that end at a share of the trunk's length by the number of the step."""
    stages = [dict(plain(stage)) for stage in dataset.arguments["stages"]]
    for number, stage in enumerate(stages, 1):
        share = stage.pop("until", None)
        is_open = number == len(stages) and share == 1 and not stage.get("ramp")
        if share is not None and not is_open:
            stage["until_step"] = step_of_share(share, steps, sizes)
    return stages


def _refuse_cooldown(trunk: Trunk) -> None:
    """Check that the rate has stayed at its height up to the checkpoint.

    Raises:
        CheckpointError: it rises, falls or has fallen.
    """
    schedule, where = trunk.schedule, f"{trunk.folder}: there is no cooldown from step {trunk.step:,}"
    start = schedule.decay_steps - schedule.wsd_decay_steps
    if schedule.style not in ("WSD", "constant"):
        why, hint = f"its schedule is {schedule.style}, which falls all the way", "a trunk is WSD or constant"
    elif trunk.step < schedule.warmup_steps:
        why, hint = f"it warms up until step {schedule.warmup_steps:,}", "take a later step: RUN@STEP"
    elif schedule.style == "WSD" and trunk.step - 1 > start:
        why, hint = f"its own decay has begun after step {start + 1:,}", f"take a step up to {start + 1:,}: RUN@STEP"
    else:
        return
    raise CheckpointError(f"{where}: {why}", f"{hint}; --config with an lr_scheduler goes on by any schedule")


def _cooldown(trunk: Trunk, decay: int, shape: str | None) -> dict[str, Any]:
    last = trunk.step + decay
    return {
        "lr_scheduler": {
            "lr_decay_style": "WSD",
            "lr_warmup_steps": trunk.schedule.warmup_steps,
            "lr_decay_steps": last,
            "wsd_decay_steps": decay,
            "lr_wsd_decay_style": shape or trunk.schedule.wsd_style,
        },
        "step_scheduler": {**dict.fromkeys(HORIZONS), "max_steps": last},
    }


def _refuse_contradictions(cfg: PretrainConfig, trunk: Trunk, settings: Mapping[str, Any]) -> None:
    steps, planned = horizon_of(cfg).steps, horizon_of(trunk.cfg).steps
    if cfg.checkpoint.restore_from != settings.get("checkpoint.restore_from"):
        raise ConfigError("checkpoint.restore_from: a branch begins with the checkpoint of RUN", "leave it out")
    if not cfg.checkpoint.enabled:
        raise ConfigError("checkpoint.enabled: false: a branch is a run with checkpoints", "leave it out")
    if steps is not None and steps <= trunk.step:
        raise ConfigError(
            f"the branch would end with step {steps:,}, and begins after step {trunk.step:,}",
            "raise step_scheduler.max_steps, the length with the trunk's steps, or give --cooldown",
        )
    is_megatron = declared_by(cfg.dataset) is MegatronPretraining
    if is_megatron and steps is not None and planned is not None and steps > planned:
        raise ConfigError(
            f"the trunk's samples were drawn for {planned:,} updates, and the branch has {steps:,}",
            "Megatron's order of samples depends on their number: end the branch before, or branch from a longer trunk",
        )


def _refuse_other_schedule(cfg: PretrainConfig, wished: Mapping[str, Any]) -> None:
    """Check that what was laid over a cooldown has left it as it is."""
    for section, values in wished.items():
        found = getattr(cfg, section)
        for key, value in values.items():
            if found is None or getattr(found, key) != value:
                raise ConfigError(
                    f"--cooldown decides {section}.{key} ({value}), and a file or the command line says otherwise",
                    "leave one of them out",
                )


def goes_another_way(trunk: Trunk, schedule: Schedule) -> bool:
    """Whether ``schedule`` is not what the trunk has done up to its checkpoint.

    Raises:
        CheckpointError: the trunk's schedule makes no sense.
    """
    compared = {*range(0, trunk.step, max(1, trunk.step // _MOST_COMPARED)), trunk.step - 1}
    try:
        return any(trunk.schedule.values(done) != schedule.values(done) for done in compared if done >= 0)
    except (KeyError, ArithmeticError, ValueError) as error:
        raise CheckpointError(f"{trunk.folder}: its schedule makes no sense: {error}", "use another step") from None
