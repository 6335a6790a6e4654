"""What a checkpoint says of the run that wrote it, and whether another run may continue from it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from automodel_cli import __version__
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.checkpoint import layout, lineage
from automodel_cli.checkpoint.load_step import Loaded
from automodel_cli.config import yaml_tree
from automodel_cli.config.load import to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.trackers import TRACKERS
from automodel_cli.data.interface import source_of
from automodel_cli.distributed.parallelize import ParallelConfig
from automodel_cli.dtypes import short_name
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import without_controls
from automodel_cli.models.external import same_class_names
from automodel_cli.models.interface import CausalLM

_LONGEST_VALUE = 120
_LONGEST_LINE = 400  # of what a difference shows
_MUST_AGREE = {
    "model": "the model section",
    "data": "the training data",
    "tokenizer": "the tokenizer",
    "optimizer": "the optimizer",
}
# Keys inside those sections that may change without making it another run.
_MAY_DIFFER = {"name", "path", "folder", "dropout", "attn_implementation"}


def versions() -> dict[str, str]:
    """Versions of what computed the numbers; read from package metadata, nothing is imported for it."""
    packages = ("torch", "transformers", "safetensors", "numpy")
    found = {name: metadata.version(name) for name in packages}
    return {"automodel": __version__, "python": platform.python_version(), **found}


@dataclass(frozen=True)
class PrecisionFacts:
    """Number types of a run: of its weights, of its matrix products, of gradients that are summed over ranks."""

    stored: str  # torch's names, of all that there are
    compute: str  # bf16, fp16 or fp32
    reduce: str

    @classmethod
    def of(cls, model: CausalLM, policy: ParallelConfig, fast_path: FastPath) -> PrecisionFacts:
        """As the model and the mixed-precision policy are; DDP sums gradients in the dtype of the weights."""
        found = sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()})
        stored = ", ".join(found)
        cast = policy.reduce_dtype if policy.strategy != "ddp" else None
        return cls(
            stored=stored,
            compute=fast_path.precision if fast_path.autocast_dtype is not None else _short(stored),
            reduce=stored if cast is None else str(cast).removeprefix("torch."),
        )

    def describe(self) -> str:
        """``stored fp32, computed bf16, reduced fp32``."""
        return f"stored {_short(self.stored)}, computed {self.compute}, reduced {_short(self.reduce)}"


def _short(names: str) -> str:
    return ", ".join(short_name(name) for name in names.split(", "))


@dataclass(frozen=True)
class Facts:
    """What a checkpoint's manifest says of its run; names and values are those on the disk, in plain JSON.

    An earlier version wrote fewer of them: what it did not know is None.
    """

    stage: str | None = None
    model: Mapping[str, Any] | None = None
    code: Mapping[str, Any] | None = None
    param_counts: Mapping[str, int] | None = None
    param_roles: Mapping[str, str] | None = None
    data: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, Any] | None = None
    optimizer: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None
    fast_path: Mapping[str, Any] | None = None
    precision: Mapping[str, Any] | None = None
    batch: Mapping[str, int] | None = None
    versions: Mapping[str, str] | None = None
    lineage: Mapping[str, Any] | None = None  # of a branch

    @classmethod
    def read(cls, checkpoint: Path) -> Facts:
        """Of a step folder.

        Raises:
            CheckpointError: it has no manifest that can be read.
        """
        return cls.from_json(layout.read_step_manifest(checkpoint)["facts"])

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Facts:
        """Of the ``facts`` of a manifest; what this version does not know is left out."""
        return cls(**{key: value for key, value in stored.items() if key in cls.__dataclass_fields__})

    def to_json(self) -> dict[str, Any]:
        """The ``facts`` of a manifest."""
        facts = dict(vars(self))
        return facts if self.lineage else {key: value for key, value in facts.items() if key != "lineage"}


def plain_config(cfg: PretrainConfig) -> dict[str, Any]:
    """The effective configuration as plain values, the way it is written to ``config.yaml``."""
    return yaml.safe_load(to_yaml(cfg))


def data_facts(dataset: Any) -> dict[str, Any]:
    """Identity of the data and of the order it is read in, as far as the data set can say."""
    known = source_of(dataset).describe()
    return {"class": known.kind, "fingerprint": known.fingerprint, "plan": known.plan}


def stage_of(cfg: PretrainConfig, dataset: Any) -> str:
    """``pretraining`` or ``mid-training``, as the configuration or else the data says."""
    return cfg.stage or source_of(dataset).stage


def refuse_other_run(stored: Facts, now: Facts, checkpoint: Path, *, other_data: bool = False) -> None:
    """Check that the run described by ``now`` is the one that wrote ``checkpoint``; ``other_data`` may be so.

    Raises:
        CheckpointError: model, data, tokenizer or optimizer differ; the message shows each difference.
    """
    found = [
        f"{title}: {line}"
        for section, title in _MUST_AGREE.items()
        if not (other_data and section == "data")
        for line in differences(getattr(stored, section), getattr(now, section))
    ]
    if found:
        raise CheckpointError(
            f"{checkpoint} belongs to another run: {'; '.join(found)}",
            "use another checkpoint_dir, --fresh to start over, or init_from to take only its weights",
        )


def changes(loaded: Loaded, now: Facts, cfg: PretrainConfig) -> list[str]:
    """Lines for all that a resume does otherwise than the run that wrote the checkpoint, each once."""
    told = {line.partition(": ")[2].partition(" is now")[0] for line in loaded.changes}  # with what a default was
    lines = [
        line
        for line in changed_configuration(loaded.config_yaml, cfg, loaded.path)
        if not any(f": optimizer.{key}: " in line for key in told)
    ]
    return [*loaded.changes, *changed_settings(Facts.from_json(loaded.facts), now), *lines]


def changed_settings(stored: Facts, now: Facts) -> list[str]:
    """Lines for what the configuration now says otherwise than the checkpoint; the configuration wins."""
    lines = []
    for section in ("schedule", "batch", "fast_path", "code"):
        for line in differences(getattr(stored, section), getattr(now, section)):
            lines.append(f"changed since the checkpoint: {section}.{line} (the configuration wins)")
    return lines


def changed_configuration(written: bytes, cfg: PretrainConfig, where: Path) -> list[str]:
    """Lines for each value of the configuration that is not the one the checkpoint was trained with.

    ``written``: ``config.yaml`` of the checkpoint ``where``. What says only where things go and when they are shown is
    left out; keys that the version which wrote it did not know are no changes.

    Raises:
        CheckpointError: it is no YAML of such a file.
    """
    lines = configuration_changes(written, cfg, where)
    return [f"changed since the checkpoint: {line} (the configuration wins)" for line in lines]


def configuration_changes(written: bytes, cfg: PretrainConfig, where: Path) -> list[str]:
    """``key: old -> new`` for each value that :func:`changed_configuration` tells of.

    Raises:
        CheckpointError: as there.
    """
    try:
        root, problems = yaml_tree.parse_document(written.decode(), str(where / "config.yaml"))
    except (AutomodelError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where / 'config.yaml'} is not a configuration: {error}", "use an older checkpoint"
        ) from None
    stored = {} if problems else root
    return [without_controls(line) for line in _changed_values(stored, plain_config(cfg))]


def lineage_of(run_folder: Path) -> dict[str, Any] | None:
    """What the checkpoints of a branch say of where it comes from; None for a run that is none.

    Raises:
        CheckpointError: ``branch.json`` of the run is damaged.
    """
    found = lineage.read(run_folder)
    return None if found is None else found.lineage.model_dump(mode="json")


# Sections, and keys of step_scheduler, that change no number of the run.
_NOT_OF_THE_RUN = {
    "checkpoint",
    *TRACKERS,
    "logging",
    "recipe",
    "device",
    "init_from",
    "dist_env",
    "distributed",
    "compile",
}
_NOT_OF_THE_RUN |= {"log_every_steps", "log_remote_every_steps", "gc_every_steps", "preemption_signal"}


def _changed_values(stored: Any, now: Any, where: str = "") -> list[str]:
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        # A target's arguments and free sections are as they were written; of closed ones every key is there.
        keys = [*stored, *(key for key in now if key not in stored and (where or now[key] is not None))]
        open_section = "_target_" in now or "_target_" in stored
        lines = []
        for key in keys:
            known = key in stored and key in now
            if key not in _NOT_OF_THE_RUN and (known or open_section or not where):
                lines += _changed_values(stored.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        return lines
    return [] if stored == now else [f"{where}: {_brief(stored)} -> {_brief(now)}"]


def _brief(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return str(value.get("_target_", "other settings")).rpartition(".")[2]
    return str(value) if len(str(value)) <= _LONGEST_VALUE else str(value)[:_LONGEST_VALUE] + "..."


def differences(stored: Any, now: Any, where: str = "") -> list[str]:
    """``key: old -> new`` for each leaf that differs; what one side does not know is not a difference."""
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in [*stored, *(key for key in now if key not in stored)]:
            if key not in _MAY_DIFFER:
                inner = f"{where}.{key}" if where else str(key)
                lines += differences(stored.get(key), now.get(key), inner)
        return lines
    if isinstance(stored, str) and isinstance(now, str):
        stored, now = same_class_names(stored), same_class_names(now)
    if stored is None or now is None or stored == now:
        return []
    line = f"{where}: {stored} -> {now}" if where else f"{stored} -> {now}"
    return [without_controls(line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + "...")]
