"""Rows of a chat task: of local files with the columns of the public data sets, or of the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from automodel_cli.corpus.conversations.rows import open_rows
from automodel_cli.corpus.documents.units import BadRow
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.chat.tasks import ChatTask, Question
from automodel_cli.evaluation.icl.prompts import ordered
from automodel_cli.files import hash_bytes
from automodel_cli.json_files import parse_json

_ENDINGS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", "")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Asked:
    """The questions that are put to a model, in order, and the hash of all of them."""

    questions: Sequence[Question]
    fingerprint: str


def local_file(folder: str, name: str) -> str:
    """The file, or folder of files, with the rows of task ``name``.

    Raises:
        ConfigError: there is no such folder.
        DataError: it has no such file.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"no folder {folder}", "--chat-data names the folder with the rows of the chat tasks")
    for ending in _ENDINGS:
        if (path := Path(folder, name + ending)).exists():
            return str(path)
    raise DataError(f"{folder} has no {name}.jsonl, .json or .parquet", "name each file after its task")


def read_rows(
    dataset: str, read: Callable[[Mapping[str, Any]], Read], *, set_name: str | None = None, split: str = "test"
) -> list[Read]:
    """What ``read`` makes of all rows.

    Raises:
        DataError: there are none, or one that ``read`` refuses.
    """
    source = open_rows(dataset, set_name, split)
    found = []
    for name, number, value in source.rows(np.ones(len(source), dtype=bool)):
        where = f"{name}:{number + 1}"
        if isinstance(value, BadRow):
            raise DataError(
                f"{where} is {value.reason.partition(' (')[0]}", "is it the file that the task is made for?"
            )
        row = parse_json(value, where) if isinstance(value, bytes) else value
        if not isinstance(row, Mapping):
            raise DataError(f"{where} is {type(row).__name__}, expected an object")
        try:
            found.append(read(row))
        except DataError as error:
            raise DataError(f"{where}: {error.message}", error.hint) from None
    if not found:
        raise DataError(f"{dataset} has no rows")
    return found


def load(task: ChatTask, folder: str | None, limit: int | None) -> Asked:
    """The task's questions in the published random order (``icl.prompts.ordered``), and the first ``limit`` of them.

    Args:
        folder: where the task's file is; None: the Hub is asked.

    Raises:
        AutomodelError: the rows are not there, or not those of the task.
    """
    if folder is None:
        found = read_rows(task.dataset, task.read, set_name=task.set_name, split=task.split)
    else:
        found = read_rows(local_file(folder, task.name), task.read)
    questions = ordered(found, limit)
    content = [[[vars(turn) for turn in one.conversation], one.answers, one.gold, one.row] for one in questions]
    return Asked(questions, hash_bytes(json.dumps(content, sort_keys=True, default=str).encode()))
