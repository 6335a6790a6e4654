"""A folder of task data: where each task's file is, reading it, and what is not there.

Layouts (the folder itself, or an ``eval_bundle/`` in it):

    published     core.yaml, eval_meta_data.csv, eval_data/<category>/<task>.jsonl
    plain         eval_meta_data.csv (optional), <category>/<task>.jsonl

One JSON object a line: ``query, choices, gold`` (multiple choice), ``context_options, continuation, gold`` (schema),
``context, continuation`` (language modelling), ``context, answer`` and optionally ``aliases, chain_of_thought``
(generation). ``core.yaml`` may describe tasks that our table does not know; they can be named like the others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.icl_tasks import KINDS, TASKS, Kind, Task
from automodel_cli.files import hash_file
from automodel_cli.json_files import PlainName, without_controls

DEFAULT_FOLDER = "eval_bundle"
CORE_LIST = "core.yaml"
METADATA = "eval_meta_data.csv"
_DATA_FOLDERS = ("eval_data", "", "local_data")

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
    "generation": ("context", "answer"),
}
_ALTERNATIVES = {"multiple_choice": "choices", "schema": "context_options"}


@dataclass(frozen=True)
class TaskData:
    """The items of one task as the file has them, and the hash of that file."""

    items: list[dict[str, Any]]
    fingerprint: str


class Bundle:
    """The folder of tasks that a user has.

    Raises:
        ConfigError: there is no such folder, or nothing in it looks like task data.
    """

    def __init__(self, folder: str | Path) -> None:
        given = Path(folder)
        nested = given / DEFAULT_FOLDER
        self.folder = nested if nested.is_dir() else given
        if not self.folder.is_dir():
            raise ConfigError(
                f"no task data at {given}",
                "name the folder with --bundle, or fetch it once: automodel eval --download-bundle",
            )
        if not any(self.folder.glob("*/*.jsonl")) and not any(self.folder.glob("*/*/*.jsonl")):
            raise ConfigError(
                f"{given} holds no task data",
                f"expected <category>/<task>.jsonl, or {CORE_LIST} beside eval_data/<category>/<task>.jsonl",
            )
        self.baselines = _baselines(self.folder / METADATA)
        self.others = _other_tasks(self.folder / CORE_LIST, self.baselines)

    def find(self, task: Task) -> Path | None:
        """Where the task's data is, or None."""
        places = (self.folder / folder / task.file for folder in _DATA_FOLDERS)
        return next((path for path in places if path.is_file()), None)

    def load(self, task: Task) -> TaskData | None:
        """The task's items, checked; None where there is no file.

        Raises:
            DataError: a line is no JSON object, or one without the fields of its kind.
        """
        path = self.find(task)
        if path is None:
            return None
        with path.open(encoding="utf-8") as lines:
            items = [
                _parse(line, task, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
            ]
        if not items:
            raise DataError(f"{path} is empty", "fetch the data again")
        return TaskData(items, hash_file(path))


def _parse(line: str, task: Task, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON object: {error}", "fetch the data again") from None
    missing = [name for name in _FIELDS[task.kind] if not isinstance(item, Mapping) or name not in item]
    if missing:
        raise DataError(
            f"{where}: no {', '.join(missing)}", f"a {task.kind} task has {', '.join(_FIELDS[task.kind])}"
        )
    answers = _ALTERNATIVES.get(task.kind)
    if answers is not None and not (isinstance(item["gold"], int) and 0 <= item["gold"] < len(item[answers])):
        raise DataError(f"{where}: gold {item['gold']!r} is none of {len(item[answers])} {answers}")
    return item


def _baselines(path: Path) -> dict[str, float]:
    """Random baselines in percent, by task, of a bundle's own metadata."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    try:
        return {row["Eval Task"]: float(row["Random baseline"]) for row in rows}
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not the metadata of tasks ({error!r})", "remove it, or fetch it again"
        ) from None


def _other_tasks(path: Path, baselines: Mapping[str, float]) -> list[Task]:
    """Tasks of the bundle's own list that our table does not know."""
    if not path.is_file():
        return []
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))["icl_tasks"]
        return [_described(entry, baselines, path) for entry in listed if entry["label"] not in TASKS]
    except (yaml.YAMLError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not a list of tasks ({error!r})", "remove it, or fetch it again") from None


def _described(entry: Mapping[str, Any], baselines: Mapping[str, float], path: Path) -> Task:
    if entry["icl_task_type"] not in KINDS:
        raise DataError(
            f"{path}: {entry['label']} is of type {entry['icl_task_type']!r}", f"known are {', '.join(KINDS)}"
        )
    file = str(entry["dataset_uri"])
    try:
        TypeAdapter(PlainName).validate_python(file)
    except ValidationError:
        raise DataError(
            f"{path}: {entry['label']} reads {without_controls(file[:60])!r}, which is no plain name below its folder",
            "remove it, or fetch it again",
        ) from None
    return Task(
        name=entry["label"],
        kind=entry["icl_task_type"],
        shots=entry["num_fewshot"][0],
        baseline=baselines.get(entry["label"], 0.0),
        category=file.split("/")[0].replace("_", " "),
        file=file,
        delimiter=entry.get("continuation_delimiter", " "),
        in_gauntlet=False,
        source=path.name,
    )
