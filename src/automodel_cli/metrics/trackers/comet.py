"""Comet: an experiment in an archive of the run folder, to be uploaded by hand, or live where that is wanted.

The experiment's key is kept in ``comet_run.json``, so a resumed run continues the same experiment. Comet writes an
archive when it ends; of a run that was killed there is none, and the next start sends its records again.
Nothing is collected besides what is sent here: no source code, git state, command line, console, host or hardware.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, Forgetful, flatten
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.metrics.trackers.own_files import NOTHING, local_place, store_id, stored_id, stored_step

KEY_VARIABLE = "COMET_API_KEY"
_NOTHING_OF_ITS_OWN = {
    "log_code": False,
    "log_graph": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_env_details": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "auto_output_logging": False,
    "parse_args": False,
    "display_summary_level": 0,
}


def is_live(settings: Mapping[str, Any]) -> bool:
    """Whether the experiment is sent while the run goes on: asked for, and the environment has a key."""
    return settings["mode"] == "online" and bool(os.environ.get(KEY_VARIABLE))


class CometTracker(Forgetful):
    """A Comet experiment."""

    def __init__(self, settings: Mapping[str, Any], run_folder: Path, config: Mapping[str, Any]) -> None:
        """Start or continue the experiment of ``run_folder``.

        Args:
            settings: the ``comet:`` section as plain values.
            config: the effective configuration, for the parameters; secrets are masked here.
        """
        # Read when the package is imported: it would patch torch and others, and report its own errors by network.
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")
        os.environ.setdefault("COMET_DISABLE_ANNOUNCEMENT", "true")
        import comet_ml

        live = is_live(settings)
        self._run_folder = run_folder
        self._place = {"project_name": settings["project_name"], "workspace": settings["workspace"], "live": live}
        known = stored_id(run_folder, "comet", self._place)
        self._key = known or secrets.token_hex(16)
        self._sent = NOTHING if known is None else stored_step(run_folder, "comet")
        # Of a run that was killed before its first archive, the server will know nothing.
        is_new = known is None or not (live or self._sent > NOTHING)
        arguments = {
            "project_name": settings["project_name"],
            "workspace": settings["workspace"],
            "experiment_key": self._key,
            **_NOTHING_OF_ITS_OWN,
        }
        start: Any
        if live:
            start = comet_ml.Experiment if is_new else comet_ml.ExistingExperiment
        else:
            start = comet_ml.OfflineExperiment if is_new else comet_ml.ExistingOfflineExperiment
            arguments["offline_directory"] = str(local_place(run_folder, "comet"))
            self.last_step = self._sent
        self._experiment = start(**arguments)
        if is_new:
            self._describe(settings, config)
        self._store()

    def _describe(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if settings["experiment_name"]:
            self._experiment.set_name(settings["experiment_name"])
        self._experiment.add_tags(list(settings["tags"]))
        self._experiment.log_parameters(flatten(redact(dict(config))))

    def log(self, entry: Entry) -> None:
        """Send the numbers and the samples."""
        self._experiment.log_metrics(entry.numbers(), step=entry.step)
        for number, (prompt, text) in enumerate(entry.samples(), 1):
            self._experiment.log_text(f"{prompt}{text}", step=entry.step, metadata={"sample": number})
        self._sent = entry.step

    def close(self, *, ok: bool) -> None:
        """End the experiment: write its archive, or wait for uploads."""
        self._experiment.log_other("run", "finished" if ok else "failed")
        self._experiment.end()
        self._store()

    def _store(self) -> None:
        store_id(self._run_folder, "comet", self._key, self._place, sent=self._sent)
