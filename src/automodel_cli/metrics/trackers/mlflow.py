"""MLflow: a run on a tracking server, or in a database of the run folder.

The MLflow run's id is kept in ``mlflow_run.json``, so a resumed run continues the same MLflow run. MLflow keeps every
value that was ever sent; an update that is made again with the same loss is therefore not sent again, and one that is
there no more (a kill came before it was sent) is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.metrics.trackers.interface import Entry, Forgetful, flatten
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.metrics.trackers.own_files import NOTHING, local_place, store_id, stored_id

_MOST_PARAMETERS, _MOST_CHARACTERS = 100, 6000  # of one call, of a value: limits of MLflow's
_LONGEST_NAME = 250
_BATCH = 900  # numbers in one call, of 1000 that MLflow takes
_NOT_IN_NAMES = re.compile(r"[^\w .\-]")


def tracking_uri(settings: Mapping[str, Any], run_folder: Path) -> str:
    """Where the run is stored: as the section says, else as MLFLOW_TRACKING_URI, else in the run folder."""
    return _named_server(settings) or f"sqlite:///{(run_folder / 'mlflow' / 'mlflow.db').absolute()}"


def artifact_location(settings: Mapping[str, Any], run_folder: Path) -> str | None:
    """Where files of a new experiment are kept; None: as the server says."""
    local = None if _named_server(settings) else (run_folder / "mlflow" / "artifacts").absolute().as_uri()
    return settings.get("artifact_location") or local


def _named_server(settings: Mapping[str, Any]) -> str | None:
    return settings.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")


def metric_name(name: str) -> str:
    """``name`` with what MLflow refuses replaced: ``val_default (ema)/loss`` -> ``val_default _ema_/loss``."""
    parts = [_NOT_IN_NAMES.sub("_", part).strip(".") or "_" for part in name.split("/")]
    return "/".join(parts)[:_LONGEST_NAME]


class MlflowTracker(Forgetful):
    """A live MLflow run."""

    def __init__(self, settings: Mapping[str, Any], run_folder: Path, config: Mapping[str, Any], *, step: int) -> None:
        """Start or continue the MLflow run of ``run_folder``, which goes on from ``step``.

        Args:
            settings: the ``mlflow:`` section as plain values.
            config: the effective configuration, for the parameters of a new run; secrets are masked here.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._entities = entities
        uri = tracking_uri(settings, run_folder)
        if _named_server(settings) is None:
            local_place(run_folder, "mlflow")
        self._client = MlflowClient(tracking_uri=uri)
        place = {"server": redact(uri), "experiment_name": settings["experiment_name"]}
        known = stored_id(run_folder, "mlflow", place) if settings["resume"] else None
        self.last_step = NOTHING
        self._there: dict[str, dict[int, float]] = {}
        self._waiting: list[Any] = []  # metrics: a call costs as much as a hundred of them
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run_id = known
            self._find_what_is_there(step)
        else:
            self._run_id = self._new_run(settings, artifact_location(settings, run_folder))
            self._send_parameters(flatten(redact(dict(config)), settings["flatten_depth"]))
            store_id(run_folder, "mlflow", self._run_id, place)

    def _new_run(self, settings: Mapping[str, Any], artifacts: str | None) -> str:
        name = settings["experiment_name"]
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name, artifacts)
        tags = dict(settings.get("tags") or {})
        if settings.get("description"):
            tags["mlflow.note.content"] = settings["description"]
        return str(self._client.create_run(experiment, tags=tags, run_name=settings.get("run_name")).info.run_id)

    def _send_parameters(self, values: Mapping[str, Any]) -> None:
        parameters = [
            self._entities.Param(metric_name(name), str(value)[:_MOST_CHARACTERS]) for name, value in values.items()
        ]
        for begin in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[begin : begin + _MOST_PARAMETERS])

    def _find_what_is_there(self, step: int) -> None:
        """Note the losses past ``step`` (all, where the run begins anew), and the last update before it."""
        losses = [name for name in self._client.get_run(self._run_id).data.metrics if name.endswith("/loss")]
        for name in losses:
            history = self._client.get_metric_history(self._run_id, name)
            self._there[name] = {metric.step: metric.value for metric in history if metric.step > step or step == 0}
            if name == "train/loss":
                self.last_step = max((metric.step for metric in history if metric.step <= step), default=NOTHING)

    def log(self, entry: Entry) -> None:
        """Take the numbers, to send many at once; send the samples as a file."""
        numbers = {metric_name(name): value for name, value in entry.numbers().items()}
        name = metric_name(f"{entry.prefix}/loss")
        if name in numbers and self._there.get(name, {}).get(entry.step) == numbers[name]:
            return
        time_ms = int(entry.time * 1000)
        self._waiting += [self._entities.Metric(name, value, time_ms, entry.step) for name, value in numbers.items()]
        if len(self._waiting) >= _BATCH:
            self.flush()
        if samples := entry.samples():
            text = "\n\n".join(f"[{prompt}]{text}" for prompt, text in samples)
            self._client.log_text(self._run_id, text, f"samples/step_{entry.step:08d}.txt")

    def flush(self) -> None:
        """Send what waits."""
        for begin in range(0, len(self._waiting), _BATCH):
            self._client.log_batch(self._run_id, metrics=self._waiting[begin : begin + _BATCH])
        self._waiting = []

    def rewind(self, step: int) -> None:
        """What comes now is new, even if its numbers are not."""
        self._there = {}

    def close(self, *, ok: bool) -> None:
        """Send what waits, and end the MLflow run."""
        self.flush()
        self._client.set_terminated(self._run_id, "FINISHED" if ok else "FAILED")
