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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.icl.tasks import TASKS, Kind, Task
from automodel_cli.files import hash_bytes
from automodel_cli.json_files import (
    FileModel,
    FiniteFloat,
    Items,
    PlainName,
    parse_json,
    read_bytes,
    read_yaml,
    validated,
)

DEFAULT_FOLDER = "eval_bundle"
CORE_LIST = "core.yaml"
METADATA = "eval_meta_data.csv"
_DATA_FOLDERS = ("eval_data", "", "local_data")

_FETCH_AGAIN = "fetch the data again"
_REMOVE = "remove it, or fetch it again"
_MAX_LINE_BYTES = 16 << 20  # of eval_meta_data.csv; a cell of Python's reader is bounded too
_MAX_SHOTS = 1000

# A number where a text belongs is what some published files have; it is spelled out.
_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | FiniteFloat | bool
Text = str | _Number
Filled = Annotated[str, Field(min_length=1)] | _Number


class _MultipleChoice(FileModel):
    """``gold`` is the place of the right one among ``choices``."""

    query: Text
    choices: Annotated[Items[Text], Field(min_length=1)]
    gold: Annotated[int, Field(ge=0)]


class _Schema(FileModel):
    """``gold`` is the place of the right one among ``context_options``."""

    context_options: Annotated[Items[Text], Field(min_length=1)]
    continuation: Filled
    gold: Annotated[int, Field(ge=0)]


class _LanguageModeling(FileModel):
    context: Text
    continuation: Filled


class _Generation(FileModel):
    context: Text
    answer: Text
    aliases: Items[Text] = ()
    chain_of_thought: Text = ""


_MODELS: dict[Kind, type[FileModel]] = {
    "multiple_choice": _MultipleChoice,
    "schema": _Schema,
    "language_modeling": _LanguageModeling,
    "generation": _Generation,
}
_ALTERNATIVES = {"multiple_choice": "choices", "schema": "context_options"}


class _ListedTask(FileModel):
    """One entry of ``core.yaml``."""

    label: Annotated[str, Field(min_length=1, max_length=200)]
    dataset_uri: PlainName
    icl_task_type: Kind
    num_fewshot: Annotated[Items[Annotated[int, Field(ge=0, le=_MAX_SHOTS)]], Field(min_length=1)]
    continuation_delimiter: str = " "


class _CoreList(FileModel):
    icl_tasks: Items[_ListedTask]


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
        data = read_bytes(path, hint=_FETCH_AGAIN)
        items = [
            _parse(line, task, f"{path}:{number}") for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
        ]
        if not items:
            raise DataError(f"{path} is empty", _FETCH_AGAIN)
        return TaskData(items, hash_bytes(data))


def _parse(line: bytes, task: Task, where: str) -> dict[str, Any]:
    item = parse_json(line, where, hint=_FETCH_AGAIN)
    model = _MODELS[task.kind]
    validated(item, model, where, hint=f"a {task.kind} task has {', '.join(model.model_fields)}")
    answers = _ALTERNATIVES.get(task.kind)
    if answers is not None and item["gold"] >= len(item[answers]):
        raise DataError(f"{where}: gold {item['gold']!r} is not among the {len(item[answers])} {answers}", _FETCH_AGAIN)
    return item


def _baselines(path: Path) -> dict[str, float]:
    """Random baselines in percent, by task, of a bundle's own metadata."""
    if not path.is_file():
        return {}
    try:
        lines = read_bytes(path, hint=_REMOVE, max_bytes=_MAX_LINE_BYTES).decode("utf-8").splitlines(keepends=True)
        found = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(lines)}
    except (KeyError, ValueError, TypeError, csv.Error) as error:  # ValueError: not UTF-8 either
        raise DataError(f"{path}: not the metadata of tasks ({error!r})", _REMOVE) from None
    wrong = [name for name, percent in found.items() if not 0 <= percent < 100]
    if wrong:
        raise DataError(
            f"{path}: the random baseline of {wrong[0]} is {found[wrong[0]]}, expected 0 up to below 100",
            _REMOVE,
        )
    return found


def _other_tasks(path: Path, baselines: Mapping[str, float]) -> list[Task]:
    """Tasks of the bundle's own list that our table does not know."""
    if not path.is_file():
        return []
    listed = validated(read_yaml(path, hint=_REMOVE), _CoreList, path, hint=_REMOVE)
    return [_described(entry, baselines, path) for entry in listed.icl_tasks if entry.label not in TASKS]


def _described(entry: _ListedTask, baselines: Mapping[str, float], path: Path) -> Task:
    return Task(
        name=entry.label,
        kind=entry.icl_task_type,
        shots=entry.num_fewshot[0],
        baseline=baselines.get(entry.label, 0.0),
        category=entry.dataset_uri.split("/")[0].replace("_", " "),
        file=entry.dataset_uri,
        delimiter=entry.continuation_delimiter,
        in_gauntlet=False,
        source=path.name,
    )
