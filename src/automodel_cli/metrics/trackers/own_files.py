"""What trackers keep in a run folder: the ids of their runs, so that a resumed run continues them, and local files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from automodel_cli.errors import DataError
from automodel_cli.files import write_json
from automodel_cli.json_files import FileModel, read_model

RUN_FILES = {tool: f"{tool}_run.json" for tool in ("wandb", "tensorboard", "mlflow", "comet", "trackio")}
"""By tool: the file with the id of its run."""
NOTHING = -1
"""In place of the last step that a tool holds, where it holds none: the first records are of step 0."""
FOLDERS = ("wandb", "tensorboard", "mlflow", "comet")
"""Folders with the files of tools that write locally."""


def lock_file(tool: str) -> str:
    """Name of the file that the process of ``tool`` holds, so that there is one at a time."""
    return f".{tool}.lock"


class _StoredRun(FileModel):
    """One of ``RUN_FILES``: an id, which becomes part of paths and addresses, and the place where it means a run."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    sent: int = NOTHING


def stored_id(run_folder: Path, tool: str, place: Mapping[str, Any]) -> str | None:
    """The id of the tool's run that this run folder belongs to; None: none yet, in another place, or damaged."""
    stored = _read(run_folder, tool)
    found = {} if stored is None else stored.model_extra or {}
    return stored.id if stored is not None and all(found.get(key) == value for key, value in place.items()) else None


def stored_step(run_folder: Path, tool: str) -> int:
    """The last step that the tool's run surely holds, as far as is known here."""
    stored = _read(run_folder, tool)
    return NOTHING if stored is None else stored.sent


def _read(run_folder: Path, tool: str) -> _StoredRun | None:
    try:
        return read_model(run_folder / RUN_FILES[tool], _StoredRun)
    except DataError:
        return None


def store_id(run_folder: Path, tool: str, run_id: str, place: Mapping[str, Any], *, sent: int | None = None) -> None:
    """Keep the id of the tool's run with the run folder, and the last step that it holds."""
    write_json(run_folder / RUN_FILES[tool], {"id": run_id, **place, **({} if sent is None else {"sent": sent})})


def local_place(run_folder: Path, tool: str) -> Path:
    """The tool's folder in the run folder, made if it is not there."""
    folder = run_folder / tool
    folder.mkdir(parents=True, exist_ok=True)
    return folder
