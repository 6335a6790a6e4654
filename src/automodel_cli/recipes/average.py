"""``automodel average``: which checkpoints, whether they are of one model, and the mean of their weights.

One process, on the CPU; one tensor in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.assembly.facts import differences
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.average import Part, Progress, write_average
from automodel_cli.checkpoint.hf.export import refuse_existing
from automodel_cli.checkpoint.inspect.describe import folder_bytes
from automodel_cli.config.schema.results import AverageConfig
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.text import plural

_OF_ONE_MODEL = {"model": "the model", "tokenizer": "the tokenizer", "code": "the code that builds the model"}
_LARGEST_WEIGHT = 1e9  # sums of larger ones, or of their inverses, could leave the range of fp64


@dataclass(frozen=True)
class AveragedPart:
    """A checkpoint, and its share of the average."""

    folder: Path
    share: float


@dataclass(frozen=True)
class Averaged:
    """What was made of which checkpoints."""

    folder: Path
    parts: tuple[AveragedPart, ...]
    num_bytes: int


def run(cfg: AverageConfig, *, progress: Progress | None = None) -> Averaged:
    """Write the weighted mean of several checkpoints.

    Raises:
        ConfigError: there is nothing to average, the weights are not as many as the checkpoints, or out of range.
        CheckpointError: a checkpoint is missing or damaged, of another model, or not finite; or the folder exists.
    """
    output = Path(cfg.output)
    refuse_existing(output)
    folders = _folders(cfg)
    weights = cfg.weights or (1.0,) * len(folders)
    if len(weights) != len(folders):
        raise ConfigError(
            f"weights: found {len(weights)} for {len(folders)} checkpoints", "give one number for each, in their order"
        )
    if min(weights) < 1 / _LARGEST_WEIGHT or max(weights) > _LARGEST_WEIGHT:
        odd = min(weights, key=lambda weight: min(weight, 1 / weight))
        raise ConfigError(f"weights: found {odd:g}, expected 1e-9 to 1e9", "only their ratios count: scale them")
    _refuse_other_models(folders)
    step = write_average(list(map(Part.open, folders, weights)), output, progress=progress)
    shares = (weight / sum(weights) for weight in weights)
    return Averaged(step, tuple(map(AveragedPart, folders, shares)), folder_bytes(step))


def _folders(cfg: AverageConfig) -> list[Path]:
    """The step folders, in the order in which they are named; the last ones of a run, the oldest first."""
    named = cfg.last is None and not cfg.steps
    folders = [_checkpoint(name) for name in cfg.checkpoints] if named else _steps_of_run(cfg)
    if len(folders) == 1:
        raise ConfigError(
            f"one checkpoint, {folders[0]}, expected several", "give --last N, --steps N,N or more checkpoints"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        names = ", ".join(map(str, folders))
        raise ConfigError(f"a checkpoint is named twice: {names}", "name each once; --weights makes one count more")
    return folders


def _steps_of_run(cfg: AverageConfig) -> list[Path]:
    run = Path(cfg.checkpoints[0])
    known = layout.list_steps(run)
    if not known:
        raise CheckpointError(f"{run} is not a run folder with checkpoints", "name the folder that a run was saved to")
    if cfg.last is not None and cfg.last > len(known):
        raise ConfigError(f"{run} has {plural(len(known), 'checkpoint')}, and last is {cfg.last}", "give fewer")
    return [layout.resolve(run, str(step)) for step in cfg.steps or known[-(cfg.last or 0) :]]


def _checkpoint(name: str) -> Path:
    found = layout.checkpoint_at(name)
    if found is not None:
        return found
    if (Path(name) / "config.json").is_file():
        raise CheckpointError(f"{name} is a Hugging Face folder", "name the checkpoints that it was exported from")
    raise CheckpointError(
        f"{name} is neither a checkpoint nor a run folder",
        "name a run folder, or one of its steps; automodel inspect-ckpt shows what there is",
    )


def _refuse_other_models(folders: Sequence[Path]) -> None:
    first = layout.read_step_manifest(folders[0])["facts"]
    for folder in folders[1:]:
        facts = layout.read_step_manifest(folder)["facts"]
        found = [
            f"{title}: {line}"
            for section, title in _OF_ONE_MODEL.items()
            for line in differences(first.get(section), facts.get(section))
        ]
        if found:
            raise CheckpointError(
                f"{folder} is of another model than {folders[0]}: {'; '.join(found)}",
                "average checkpoints of one model",
            )
