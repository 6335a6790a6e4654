"""Weights & Biases: the same records as ``metrics.jsonl``, sent to a W&B run.

The W&B run's id is kept in ``wandb_run.json`` of the run folder, so a resumed run continues the same W&B run.
The configuration is passed with secrets masked. Steps are sent as a metric of their own (``step``), not as
W&B's internal counter: that one only grows, and would drop what a run resumed from an older checkpoint says.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, Forgetful
from automodel_cli.metrics.trackers.masking import redact, redact_command_line
from automodel_cli.metrics.trackers.own_files import store_id, stored_id

DEFAULT_PROJECT = "automodel"


@contextlib.contextmanager
def _command_line_masked() -> Iterator[None]:
    """W&B stores the command line with the run, as it stands when the run starts."""
    kept = sys.argv
    sys.argv = redact_command_line(kept)
    try:
        yield
    finally:
        sys.argv = kept


def init_arguments(settings: Mapping[str, Any], run_folder: Path, run_id: str) -> dict[str, Any]:
    """The ``wandb:`` section as arguments of ``wandb.init``; ``save_dir`` is its ``dir``."""
    ours = ("enable", "resume")  # a resumed run always continues its own W&B run
    given = {key: value for key, value in settings.items() if key not in ours and value not in (None, ())}
    folder = given.pop("save_dir", None)
    defaults = {"project": DEFAULT_PROJECT, "dir": str(folder or run_folder), "resume": "allow"}
    return {**defaults, **given, "id": run_id}


def choose_run_id(settings: Mapping[str, Any], run_folder: Path) -> str:
    """The id in the settings, else the one this run folder used for the same project, else a new one."""
    if settings.get("id"):
        return str(settings["id"])
    return stored_id(run_folder, "wandb", _place(settings)) or secrets.token_hex(4)


def _place(settings: Mapping[str, Any]) -> dict[str, str | None]:
    return {"entity": settings.get("entity"), "project": settings.get("project") or DEFAULT_PROJECT}


class WandbTracker(Forgetful):
    """A live W&B run."""

    def __init__(self, settings: Mapping[str, Any], run_folder: Path, config: Mapping[str, Any]) -> None:
        """Start or continue the W&B run of ``run_folder``.

        Args:
            settings: the ``wandb:`` section as plain values; unknown keys go to ``wandb.init`` as they are.
            config: the effective configuration; secrets are masked here.
        """
        run_folder.mkdir(parents=True, exist_ok=True)
        import wandb  # slow (a second) and optional: only when asked for

        run_id = choose_run_id(settings, run_folder)
        arguments = init_arguments(settings, run_folder, run_id)
        Path(arguments["dir"]).mkdir(parents=True, exist_ok=True)
        with _command_line_masked():
            self._run = wandb.init(config=redact(dict(config)), **arguments)
        # Every metric is drawn over our own step: see the head of this file.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        store_id(run_folder, "wandb", run_id, _place(settings))

    def log(self, entry: Entry) -> None:
        """Send the numbers."""
        self._run.log({"step": entry.step, **entry.numbers()})

    def close(self, *, ok: bool) -> None:
        """Finish the W&B run; waits for uploads."""
        self._run.finish(exit_code=0 if ok else 1)
