"""What lies in a run folder beside its log, as plain values: configuration, checkpoints, machine, scores, state.

Files of a run folder may be somebody else's. They are read below the folder only (a symbolic link that leads out of it
is not followed), bounded, and one that cannot be read is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout, nested_runs
from automodel_cli.checkpoint.run_files import CONFIG_NAME
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import parse_json, read_bytes, read_yaml
from automodel_cli.metrics.run_view import none_if_odd
from automodel_cli.metrics.table import as_float
from automodel_cli.metrics.trackers.masking import redact
from automodel_cli.serving.watch.data_changes import data_changes

PlanOf = Callable[[Path], Mapping[str, Any]]
"""What is planned, from a run's ``config.yaml``: ``steps``, ``tokens``, ``flops_per_token``, ...; {}: not known."""
_BRANCH_NAME = "branch.json"
_MAX_BYTES = 4 << 20
_MAX_CONFIG_BYTES = 128 << 10  # YAML is slow to read, and all runs wait for it
_MOST_KEYS = 2000
_MOST_SAVES = 200
_MOST_RESULTS = 20
_MOST_SCORES = 400
_SCORES = ("accuracy", "score", "value")  # of what has a ``stderr``
_LONGEST_VALUE = 500
# Of a checkpoint's facts: who made it, and of what.
_SECTIONS = ("model", "param_counts", "data", "tokenizer", "optimizer", "schedule", "batch", "precision")
_MACHINE = ("fast_path", "versions")


def no_plan(_: Path) -> Mapping[str, Any]:
    """Where nobody works it out."""
    return {}


class RunFacts:
    """Facts of a run folder, read again where something has changed."""

    def __init__(self, folder: Path, plan_of: PlanOf = no_plan) -> None:
        self._folder, self._plan_of = folder, plan_of
        self._stamp: object = None
        self._config: dict[str, str] = {}
        self._plan: dict[str, Any] = {}
        self._config_stamp: object = None
        self._manifests: dict[str, tuple[object, dict[str, Any]]] = {}
        self.value: dict[str, Any] = {}

    def update(self) -> bool:
        """Look again; whether anything is different. A folder that cannot be read keeps what was known of it."""
        try:
            return self._update()
        except OSError:
            return False

    def _update(self) -> bool:
        is_training = nested_runs.is_training(self._folder)
        stamp = (_stamp(self._folder), _stamp(self._folder / CONFIG_NAME), is_training)
        if stamp == self._stamp:
            return False
        before = self.value
        self._read_config()
        saves = self._saves()
        stored = self._newest_facts(saves)
        self.value = {
            "training": is_training,
            "config": self._config,
            "plan": self._plan,
            "saves": [{key: value for key, value in save.items() if key != "facts"} for save in saves],
            "facts": flattened({key: stored[key] for key in _SECTIONS if key in stored}),
            "machine": flattened({key: stored[key] for key in _MACHINE if key in stored}),
            "results": self._results(),
            "data_changes": self._data_changes(saves),
            "lineage": flattened(redact(self._json(_BRANCH_NAME))),
        }
        self._stamp = stamp  # now, for what failed is tried again
        return self.value != before

    # ------------------------------------------------------------------------------------------ files

    def _inside(self, *names: str) -> Path | None:
        """A file of the folder; None where there is none, or a link leads elsewhere."""
        path = self._folder.joinpath(*names)
        try:
            return path if path.resolve(strict=True).is_relative_to(self._folder.resolve()) else None
        except (OSError, RuntimeError):
            return None

    def _json(self, *names: str) -> dict[str, Any]:
        if (path := self._inside(*names)) is None:
            return {}
        try:
            found = parse_json(read_bytes(path, max_bytes=_MAX_BYTES), path)
        except AutomodelError:
            return {}
        return found if isinstance(found, dict) else {}

    def _read_config(self) -> None:
        stamp = _stamp(self._folder / CONFIG_NAME)
        if stamp == self._config_stamp:
            return
        self._config_stamp, self._config, self._plan = stamp, {}, {}
        if stamp is None or stamp[2] > _MAX_CONFIG_BYTES or (path := self._inside(CONFIG_NAME)) is None:
            return
        try:
            found = read_yaml(path)
        except AutomodelError:
            return
        if isinstance(found, dict):
            self._config = flattened(redact(found))
            self._plan = dict(self._plan_of(path)) if len(self._config) < _MOST_KEYS else {}

    def _saves(self) -> list[dict[str, Any]]:
        steps = layout.list_steps(self._folder)[-_MOST_SAVES:]
        marks = {pointer: _pointer(self._folder, pointer) for pointer in layout.POINTERS}
        saves = []
        for step in steps:
            name = layout.step_name(step)
            manifest = self._manifest(name)
            if manifest:
                known = [pointer for pointer, named in marks.items() if named == name]
                saves.append({**manifest, "marks": known})
        names = set(map(layout.step_name, steps))
        self._manifests = {name: known for name, known in self._manifests.items() if name in names}
        return saves

    def _manifest(self, name: str) -> dict[str, Any]:
        path = self._inside(name, layout.MANIFEST)
        stamp = None if path is None else _stamp(path)
        if path is None or stamp is None:
            return {}
        known = self._manifests.get(name)
        if known is None or known[0] != stamp:
            known = self._manifests[name] = (stamp, _of_manifest(path, stamp[1] / 1e9))
        return known[1]

    def _newest_facts(self, saves: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        return next((save["facts"] for save in reversed(list(saves)) if save["facts"]), {})

    def _data_changes(self, saves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not saves:
            return {}
        step = saves[-1]["step"]
        return data_changes(self._json(layout.step_name(step), "loader.json"), step)

    def _results(self) -> list[dict[str, Any]]:
        """What ``automodel eval`` has written: scores by results file."""
        files = sorted(self._folder.glob("results*.json"))[-_MOST_RESULTS:]
        found = [{"name": path.name, "scores": scores_of(self._json(path.name))} for path in files]
        return [one for one in found if one["scores"]]


def _of_manifest(path: Path, time: float) -> dict[str, Any]:
    try:
        manifest = layout.read_step_manifest(path.parent)
    except CheckpointError:
        return {}
    loss, val_loss = manifest["metrics"].get("loss"), manifest["metrics"].get("val_loss")
    losses = val_loss if isinstance(val_loss, dict) else {} if val_loss is None else {"default": val_loss}
    return {
        "step": manifest["step"],
        "time": time,
        "loss": none_if_odd(loss) if loss is not None else None,
        "val_loss": {name: none_if_odd(value) for name, value in losses.items() if value is not None},
        "bytes": sum(record["bytes"] for record in manifest["files"]),
        "facts": {key: manifest["facts"].get(key) for key in (*_SECTIONS, *_MACHINE) if manifest["facts"].get(key)},
    }


def scores_of(results: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Of a results file: a number and its standard error (None: it has none) by name, at most 400 of them."""
    found: dict[str, list[float | None]] = {}
    for name in ("loss", "bits_per_byte", "perplexity"):
        if (value := _number(results.get(name))) is not None:
            found[name] = [value, None]
    waiting: list[tuple[str, Any]] = [("", results)]
    while waiting and len(found) < _MOST_SCORES:
        name, one = waiting.pop()
        if not isinstance(one, Mapping):
            continue
        value = next((number for key in _SCORES if (number := _number(one.get(key))) is not None), None)
        if value is not None and "stderr" in one:
            found[name.removeprefix("tasks ").removeprefix("means ")] = [value, _number(one["stderr"])]
        waiting += [(f"{name} {key}".strip()[:_LONGEST_VALUE], inner) for key, inner in reversed(list(one.items()))]
    return found


def _number(value: Any) -> float | None:
    return none_if_odd(as_float(value)) if not isinstance(value, bool) else None


def _pointer(folder: Path, pointer: str) -> str | None:
    try:
        return layout.read_pointer(folder, pointer)
    except CheckpointError:
        return None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def flattened(value: Any) -> dict[str, str]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": "1"}``: leaves as short texts by their full names, at most 2,000 of them."""
    found: dict[str, str] = {}
    waiting = [("", value)]
    while waiting and len(found) < _MOST_KEYS:
        name, one = waiting.pop()
        if isinstance(one, Mapping) and one:
            waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(list(one.items()))]
        elif name:
            found[name[:_LONGEST_VALUE]] = _text(one)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    try:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    except ValueError:  # YAML has numbers with more digits than Python writes
        text = "a number of many digits"
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
