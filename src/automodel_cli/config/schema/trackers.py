"""Sections of trackers: where a run's numbers go besides its run folder. Keys to their services are never settings."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import AliasChoices, Field, field_validator

from automodel_cli.config.schema.base import Section, Whole, ignored

_PASSWORD = re.compile(r"^\w[\w+.-]*://[^/@\s]*:[^/@\s]+@")


class WandbConfig(Section):
    """Weights & Biases. Absent, or `enable: false`: not used. Secrets belong in WANDB_API_KEY, never here."""

    enable: bool = True
    """false switches the section off without removing it."""
    project: str = "automodel"
    """Project the run appears in."""
    entity: str | None = None
    """User or team; null: your default."""
    name: str | None = None
    """Name of the run; null: W&B makes one."""
    group: str | None = None
    """Group of the run."""
    job_type: str | None = None
    """Kind of the run within its group."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""
    notes: str | None = None
    """Longer description of the run."""
    mode: Literal["online", "offline", "disabled", "shared"] | None = None
    """`offline` keeps everything in local files; null: as WANDB_MODE says."""
    save_dir: str | None = Field(default=None, validation_alias=AliasChoices("save_dir", "dir"))
    """Folder for W&B's own files (its `dir`); null: the run folder."""
    id: str | None = None
    """Id of the W&B run to continue; null: the one stored with the run folder, or a new one."""

    # Keys of older files, without effect.
    resume: str | bool | None = ignored(None, "a resumed run always continues its own W&B run")


class TensorboardConfig(Section):
    """TensorBoard: event files in the folder `tensorboard` of the run folder. `true` is short for the section."""

    enable: bool = True
    """false switches the section off without removing it."""


class MlflowConfig(Section):
    """MLflow. `true` is short for the section. Secrets belong in MLFLOW_TRACKING_TOKEN, never here."""

    enable: bool = True
    """false switches the section off without removing it."""
    experiment_name: str = "automodel"
    """Experiment the run appears in."""
    run_name: str | None = None
    """Name of the run; null: MLflow makes one."""
    tracking_uri: str | None = None
    """Tracking server or database; null: MLFLOW_TRACKING_URI, else a database in the run folder."""
    artifact_location: str | None = None
    """Where files of a new experiment are kept; null: as the server says."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the run."""
    description: str | None = None
    """Longer description of the run."""
    resume: bool = True
    """A resumed run continues its MLflow run; false: it starts another one."""
    flatten_depth: Whole = 1
    """Levels of sections whose keys are parameters of their own, `model.n_layer`; deeper ones are one, as JSON."""

    @field_validator("tracking_uri", "artifact_location")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        if value is not None and _PASSWORD.match(value):
            raise ValueError(
                "holds a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
            )
        return value


class CometConfig(Section):
    """Comet. `true` is short for the section. The key belongs in COMET_API_KEY, never here."""

    enable: bool = True
    """false switches the section off without removing it."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes archives to the run folder, for `comet upload`; `online` sends, where COMET_API_KEY is set."""
    project_name: str = "automodel"
    """Project the experiment appears in."""
    workspace: str | None = None
    """Workspace of the project; null: your default."""
    experiment_name: str | None = None
    """Name of the experiment; null: Comet makes one."""
    tags: tuple[str, ...] = ()
    """Tags of the experiment."""
    api_key: None = None
    """Never here: set COMET_API_KEY."""

    # Keys of older files, without effect.
    auto_metric_logging: bool = ignored(False, "what metrics.jsonl holds is logged, and nothing else")

    @field_validator("api_key", mode="before")
    @classmethod
    def _from_the_environment(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("is a secret, which config.yaml would keep; set COMET_API_KEY instead")


class TrackioConfig(Section):
    """Trackio. `true` is short for the section. Runs are kept in Trackio's own folder on this machine."""

    enable: bool = True
    """false switches the section off without removing it."""
    project: str = "automodel"
    """Project the run appears in."""
    name: str | None = None
    """Name of the run; null: a new one."""
    group: str | None = None
    """Group of the run."""


TrackerSection = WandbConfig | TensorboardConfig | MlflowConfig | CometConfig | TrackioConfig
TRACKERS = ("wandb", "tensorboard", "mlflow", "comet", "trackio")
"""Sections of trackers, by their keys."""
