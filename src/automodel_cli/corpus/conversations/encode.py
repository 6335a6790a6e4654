"""Rows of a task to token ids: the work of a worker process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.conversations.chat_format import ChatFormat, chat_format_of
from automodel_cli.corpus.conversations.conversation import TrainOn
from automodel_cli.corpus.conversations.tasks import TASKS
from automodel_cli.corpus.documents.units import BadRow, Chunk, Unit
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.errors import DataError


@dataclass
class ConversationChunk(Chunk):
    """Conversations of one unit: all ids, one learned-or-not for each, and the length of each conversation (int64)."""

    mask: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class ConversationTask:
    """What a process needs to know to encode rows. Pickled it goes without ``tokenizer``, which is then loaded."""

    tokenizer_folder: Path
    train_on: TrainOn
    tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": None}

    def open(self) -> ConversationEncoder:
        """What encodes units in this process; a unit's payload: a task's name, pairs of row number and row."""
        tokenizer = self.tokenizer or load_tokenizer(self.tokenizer_folder)
        chat = chat_format_of(tokenizer)
        assert chat is not None
        return ConversationEncoder(chat, self.train_on)


class ConversationEncoder:
    """Reads and renders the rows of units; a row that is no conversation, or teaches nothing, is a bad row."""

    def __init__(self, chat: ChatFormat, train_on: TrainOn) -> None:
        self._chat, self._train_on = chat, train_on

    def __call__(self, unit: Unit) -> ConversationChunk:
        task, rows = unit.payload
        conversation_of = TASKS[task].conversation
        ids: list[int] = []
        mask: list[bool] = []
        lengths: list[int] = []
        bad = []
        for number, value in rows:
            try:
                rendered = self._chat.render(conversation_of(_row(value)), train_on=self._train_on)
                if not any(rendered.mask[1:]):
                    raise DataError("nothing in it is learned")
            except DataError as error:
                bad.append(BadRow(number, error.message, f"{unit.name}:{number + 1}", after=len(lengths)))
                continue
            ids += rendered.ids
            mask += rendered.mask
            lengths.append(len(rendered.ids))
        return ConversationChunk(
            np.array(ids, dtype=self._chat.tokenizer.dtype),
            mask=np.array(mask, dtype=np.uint8),
            lengths=np.array(lengths, dtype=np.int64),
            rows=len(rows),
            bad=bad,
        )


def _row(value: Any) -> Mapping[str, Any]:
    if isinstance(value, BadRow):
        raise DataError(value.reason)
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError("malformed JSON") from None
    if not isinstance(value, Mapping):
        raise DataError(f"a row is {type(value).__name__}, not an object")
    return value
