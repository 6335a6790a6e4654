"""The sections of trackers: where the numbers of a run go beside the run folder, said before they do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from automodel_cli.assembly import facts
from automodel_cli.assembly.reporter import Rows
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.trackers import TrackerSection
from automodel_cli.errors import ConfigError
from automodel_cli.metrics.trackers import comet, mlflow, trackio, wandb
from automodel_cli.metrics.trackers.apart import Apart
from automodel_cli.metrics.trackers.background import Background, Say, Trackers
from automodel_cli.metrics.trackers.interface import Tracker
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.plain_text import without_controls

TITLES = {
    "wandb": "W&B",
    "tensorboard": "TensorBoard",
    "mlflow": "MLflow",
    "comet": "Comet",
    "trackio": "Trackio",
}
_PACKAGES = {"comet": "comet_ml"}  # where it is not the section's name
_INSTALL = "pip install 'automodel-cli[{}]'"
_MLFLOW_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
_MLFLOW_CREDENTIALS = "~/.mlflow/credentials"


def check_trackers(cfg: PretrainConfig) -> None:
    """Check that no secret of the environment goes where only a file says.

    Raises:
        ConfigError: MLflow's credentials would go to a server that the environment does not name.
    """
    section = cfg.active_trackers.get("mlflow")
    uri = getattr(section, "tracking_uri", None)
    if uri is None or not uri.lower().startswith("http") or uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return
    held = [name for name in _MLFLOW_SECRETS if os.environ.get(name)]
    held += [_MLFLOW_CREDENTIALS] if Path(_MLFLOW_CREDENTIALS).expanduser().exists() else []
    if held:
        raise ConfigError(
            f"mlflow.tracking_uri: MLflow would send what {held[0]} holds to {without_controls(uri)}",
            "if that is the server it is meant for, set MLFLOW_TRACKING_URI to the same",
        )


def rows(cfg: PretrainConfig, run_folder: Path) -> Rows:
    """Each tracker, and where it sends or writes."""
    places = {
        name: without_controls(_PLACES[name](section.model_dump(), run_folder))
        for name, section in cfg.active_trackers.items()
    }
    return [("" if i else "trackers", f"{TITLES[name]}: {place}") for i, (name, place) in enumerate(places.items())]


def _place_of_wandb(settings: Mapping[str, Any], run_folder: Path) -> str:
    mode = settings["mode"] or os.environ.get("WANDB_MODE") or "online"
    if mode in ("online", "shared"):
        owner = f"{settings['entity']}/" if settings["entity"] else ""
        return f"sends to project {owner}{settings['project']}"
    return f"{mode}, in {settings['save_dir'] or run_folder}"


def _place_of_mlflow(settings: Mapping[str, Any], run_folder: Path) -> str:
    uri = mlflow.tracking_uri(settings, run_folder)
    files = f", files to {redact(settings['artifact_location'])}" if settings["artifact_location"] else ""
    sends = "" if uri.startswith(("sqlite:", "file:")) else "sends to "
    return f"{sends}{redact(uri)}{files}"


def _place_of_comet(settings: Mapping[str, Any], run_folder: Path) -> str:
    if comet.is_live(settings):
        owner = f"{settings['workspace']}/" if settings["workspace"] else ""
        return f"sends to project {owner}{settings['project_name']}"
    why = f" ({comet.KEY_VARIABLE} is not set)" if settings["mode"] == "online" else ""
    return f"offline{why}, in {run_folder / 'comet'}"


def _place_of_trackio(settings: Mapping[str, Any], run_folder: Path) -> str:
    remote = trackio.remote_place()
    return f"sends to {redact(remote.partition('?')[0])}" if remote else f"local, project {settings['project']}"


_PLACES: Mapping[str, Callable[[Mapping[str, Any], Path], str]] = {
    "wandb": _place_of_wandb,
    "tensorboard": lambda settings, run_folder: str(run_folder / "tensorboard"),
    "mlflow": _place_of_mlflow,
    "comet": _place_of_comet,
    "trackio": _place_of_trackio,
}


def notes(cfg: PretrainConfig) -> list[str]:
    """Trackers whose package is not here: the run will do without them."""
    missing = [name for name in cfg.active_trackers if importlib.util.find_spec(_PACKAGES.get(name, name)) is None]
    return [
        f"{_PACKAGES.get(name, name)} is not installed ({_INSTALL.format(name)}): {TITLES[name]} will not start, and "
        "training goes on without it"
        for name in missing
    ]


def open_trackers(cfg: PretrainConfig, run_folder: Path, *, step: int, say: Say) -> Trackers | None:
    """Start the trackers of a run that goes on from ``step``; None where there are none. Returns at once."""
    active = cfg.active_trackers
    if not active:
        return None
    config = facts.plain_config(cfg)

    def start(name: str, section: TrackerSection) -> Tracker:
        settings = section.model_dump()
        if name == "wandb":  # whose client is a process already, and which looks at the one that it is in
            return wandb.WandbTracker(settings, run_folder, config)
        return Apart(
            name,
            TITLES[name],
            {
                "settings": settings,
                "run_folder": str(run_folder),
                "config": config,
                "step": step,
                "every_steps": cfg.step_scheduler.log_remote_every_steps,
            },
        )

    return Trackers([Background(TITLES[name], partial(start, name, active[name]), say) for name in active])
