"""Trackio: a run in its local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say.

The run's name is kept in ``trackio_run.json``, so a resumed run continues the same one. Nothing is collected besides
what is sent here: no processor or GPU readings. The database takes what is sent twice a second.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, Forgetful, flatten
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.metrics.trackers.own_files import NOTHING, store_id, stored_id, stored_step


def remote_place() -> str | None:
    """Where the environment sends runs to; None: they stay on this machine."""
    return os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")


class TrackioTracker(Forgetful):
    """A live Trackio run."""

    def __init__(self, settings: Mapping[str, Any], run_folder: Path, config: Mapping[str, Any]) -> None:
        """Start or continue the Trackio run of ``run_folder``.

        Args:
            settings: the ``trackio:`` section as plain values.
            config: the effective configuration; secrets are masked here.
        """
        import trackio

        self._markdown = trackio.Markdown
        place = {"project": settings["project"], "given_name": settings["name"]}
        known = stored_id(run_folder, "trackio", place)
        self.last_step = self._sent = NOTHING if known is None else stored_step(run_folder, "trackio")
        name = known or settings["name"] or f"run-{secrets.token_hex(4)}"
        self._run = trackio.init(
            project=settings["project"],
            name=name,
            group=settings["group"],
            config=flatten(redact(dict(config))),
            resume="never" if known is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._store = partial(store_id, run_folder, "trackio", name, place)
        self._store(sent=self._sent)

    def log(self, entry: Entry) -> None:
        """Send the numbers and the samples."""
        texts = {
            f"{entry.prefix}/sample {number}": self._markdown(f"{prompt}{text}")
            for number, (prompt, text) in enumerate(entry.samples(), 1)
        }
        self._run.log({**entry.numbers(), **texts}, step=entry.step)
        self._sent = entry.step

    def close(self, *, ok: bool) -> None:
        """Write what waits; Trackio has no place for how a run ended."""
        self._run.finish()
        self._store(sent=self._sent)
