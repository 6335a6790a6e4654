"""Runs that a sweep or a race is made of: what each changes of its base, its id, and what is known before it starts.

A run's id is a label for people and a hash of the base file's content and of all that is changed, so that the same
settings find the same folder, whatever the order, and edited ones never take the result of others. No torch.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from automodel_cli.config.horizon import batches_of, configured_seq_len, horizon_of
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.sweep import SweepRunConfig
from automodel_cli.config.targets.own_models import own_model
from automodel_cli.config.yaml_tree import read_file
from automodel_cli.errors import ConfigError
from automodel_cli.sizing.shape import flops_per_token

DEPTH, BUDGET, SEED = "model.depth", "step_scheduler.target_flops", "rng.seed"
_RUN_FOLDER = "checkpoint.checkpoint_dir"
_SHORT = {DEPTH: "d", BUDGET: "f", SEED: "s"}
_MOST_PROBLEMS = 10


@dataclass(frozen=True)
class PlannedRun:
    """One run: ``automodel pretrain llm`` with the base and ``settings``. What is not known beforehand is None."""

    id: str
    recipe: str  # a hash of what all runs of its sweep have in common
    base: Path
    folder: Path  # of the run
    settings: Mapping[str, Any]  # by dotted key, without the folder
    cfg: PretrainConfig
    params: Mapping[str, int]  # by convention: total, non_embedding, scaling; empty: not known
    flops_per_token: int | None
    steps: int | None
    tokens: int | None  # that it is trained on

    @property
    def arguments(self) -> list[str]:
        """What stands behind ``automodel``."""
        changes = {**self.settings, _RUN_FOLDER: str(self.folder)}
        words = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        return ["pretrain", "llm", "-c", str(self.base), *words]

    @property
    def flops(self) -> float | None:
        """Compute of the whole run."""
        return float(self.tokens * self.flops_per_token) if self.tokens and self.flops_per_token else None

    @property
    def depth(self) -> int | None:
        """Layers, where the model was given by its depth."""
        layers = self.cfg.derived.get("model.num_hidden_layers")
        return self.settings.get(DEPTH, layers)

    @property
    def budget(self) -> float | None:
        """FLOPs that it was planned for."""
        return self.cfg.step_scheduler.target_flops

    @property
    def seed(self) -> int:
        """Of weights and data order."""
        return self.cfg.rng.seed


def plan_sweep(cfg: SweepRunConfig) -> list[PlannedRun]:
    """All combinations of the grid, cheap budgets first.

    Raises:
        ConfigError: no grid, or runs that cannot be: each with its settings.
    """
    axes = _axes(cfg)
    order = sorted(axes, key=lambda key: key != BUDGET)  # the slowest to change comes first
    points = [dict(zip(order, values, strict=True)) for values in itertools.product(*(axes[key] for key in order))]
    runs: list[PlannedRun] = []
    problems: list[str] = []
    for point in points:
        try:
            runs.append(plan_run(Path(cfg.base), point, Path(cfg.output_dir), fixed=cfg.set, trust=cfg.trust))
        except ConfigError as error:
            problems.append(f"{_label(point)}: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    if problems:
        raise _cannot_be(problems, len(points))
    ids = [run.id for run in runs]
    if double := {run_id for run_id in ids if ids.count(run_id) > 1}:
        raise ConfigError(f"the grid has {sorted(double)[0]} twice", "give each value once")
    kept = [run for run in runs if _is_within(run, cfg.ratios)]
    if not kept:
        raise ConfigError(f"no run has tokens per parameter within ratios {cfg.ratios}", "widen ratios")
    return kept


def _axes(cfg: SweepRunConfig) -> dict[str, tuple[Any, ...]]:
    """Values by dotted key; each key has them from one place."""
    short = {DEPTH: cfg.depths, BUDGET: cfg.budgets, SEED: cfg.seeds}
    axes = {key: values for key, values in short.items() if values}
    for key, values in cfg.grid.items():
        if key in axes:
            raise ConfigError(f"the grid has {key} twice: under grid, and as a list of its own", "give it once")
        if not values:
            raise ConfigError(f"grid: {key} has no values", "give at least one, or leave the key out")
        axes[key] = values
    if not axes:
        raise ConfigError("the grid is empty", "give depths and budgets, or any keys under grid")
    return axes


def _is_within(run: PlannedRun, ratios: tuple[float, float] | None) -> bool:
    params = run.params.get("scaling")
    return ratios is None or not (run.tokens and params) or ratios[0] <= run.tokens / params <= ratios[1]


def _cannot_be(problems: list[str], points: int) -> ConfigError:
    same = {problem.partition(": ")[2] for problem in problems}
    if len(problems) == points and len(same) == 1:  # it has nothing to do with the grid
        return ConfigError(same.pop())
    more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    lines = "\n  ".join([*problems[:_MOST_PROBLEMS], *more])
    return ConfigError(f"{len(problems)} of {points} runs cannot be:\n  {lines}", "change the grid or the base")


def plan_run(
    base: Path,
    point: Mapping[str, Any],
    folder: Path,
    *,
    fixed: Mapping[str, Any] | None = None,
    trust: Iterable[str] = (),
    name: str = "",
) -> PlannedRun:
    """The run of one point, in a folder below ``folder``.

    Args:
        point: what tells this run from its siblings, by dotted key; it is in the label of the id.
        fixed: what is changed in all of them.
        name: what its id begins with.

    Raises:
        ConfigError: the configuration is wrong, ends before its first update, or leaves nothing to compare.
    """
    fixed = fixed or {}
    _refuse_keys(fixed, point)
    settings = {**fixed, **point}
    tree, _ = read_file(base)
    run_id = "_".join(filter(None, [name, _label(point), _hash_of(tree, settings)]))
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    cfg = load_config(PretrainConfig, base, [*overrides, f"{_RUN_FOLDER}={folder / run_id}"], trust=tuple(trust))
    _refuse_incomparable(cfg)
    model, seq_len, steps = own_model(cfg.model), configured_seq_len(cfg), horizon_of(cfg).steps
    counts = model.counts() if model else None
    return PlannedRun(
        id=run_id,
        recipe=_hash_of(tree, fixed),
        base=base,
        folder=folder / run_id,
        settings=settings,
        cfg=cfg,
        params={} if counts is None else vars(counts),
        flops_per_token=flops_per_token(model.shape(), seq_len) if model and seq_len else None,
        steps=steps,
        tokens=batches_of(cfg).samples(steps) * seq_len if steps and seq_len else None,
    )


def _refuse_keys(fixed: Mapping[str, Any], point: Mapping[str, Any]) -> None:
    """What one of the two would quietly win over, or the run's folder over both."""
    if both := sorted(fixed.keys() & point.keys()):
        raise ConfigError(f"{both[0]} is changed in all runs (set), and varied", "leave it out of set")
    keys = [*fixed, *point]
    for number, key in enumerate(keys):
        if inner := [one for one in keys[:number] if one.startswith(f"{key}.")]:
            raise ConfigError(f"{key} replaces all of its section, {inner[0]} too", f"give {key} before {inner[0]}")
    if _RUN_FOLDER in fixed or _RUN_FOLDER in point:
        raise ConfigError(f"{_RUN_FOLDER}: each run has a folder of its own, below output_dir", "leave it out")


def _hash_of(tree: Any, settings: Mapping[str, Any]) -> str:
    content = json.dumps([tree, settings], sort_keys=True, default=str).encode()
    return xxhash.xxh3_64_hexdigest(content)[:8]


def _refuse_incomparable(cfg: PretrainConfig) -> None:
    if cfg.validation_dataset is None and not cfg.named_validation_datasets:
        raise ConfigError("runs are compared by their validation loss, and there is no validation_dataset", "add one")
    if cfg.step_scheduler.val_every_steps is None:
        raise ConfigError("step_scheduler.val_every_steps is null: no run would be scored", "set it to final")
    if not cfg.checkpoint.enabled:
        raise ConfigError("checkpoint.enabled is false: a run would leave nothing to compare", "leave it out")
    if cfg.checkpoint.push_to_hub is not None:
        raise ConfigError("checkpoint.push_to_hub: every run would go to the same repository", "export the best run")


def _label(point: Mapping[str, Any]) -> str:
    """``d6_f1e+18_s0``: settings in a folder's name, for people."""
    return "_".join(_words(point))


def _words(point: Mapping[str, Any]) -> Iterator[str]:
    known = [key for key in _SHORT if key in point]
    for key in [*known, *sorted(key for key in point if key not in _SHORT)]:
        value = point[key]
        text = f"{value:g}" if isinstance(value, float) else str(value)
        yield _SHORT.get(key, key.rpartition(".")[2]) + re.sub(r"[^A-Za-z0-9.+-]+", "-", text)[:24]
