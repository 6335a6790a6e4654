"""Tasks by name: where their rows are, and how a row is read as a conversation.

| task            | rows                                          | conversation                                     |
|-----------------|-----------------------------------------------|--------------------------------------------------|
| smoltalk        | messages                                      | itself                                           |
| mmlu_auxiliary  | question, choices, answer (index)             | question and lettered choices; ``B: the choice`` |
| arc             | question, choices {text, label}, answerKey    | the same                                         |
| gsm8k           | question, answer                              | itself, without the calculator's ``<<48/2=24>>`` |
| messages        | any of the forms in ``conversation``          | itself                                           |
| instructions    | instruction (input) output, prompt completion | question and answer                              |
| practice        | none: made on the spot (``practice``)         | small questions with one right answer            |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from automodel_cli.corpus.conversations.conversation import (
    Conversation,
    Message,
    checked_text,
    parse_pair,
    parse_row,
)
from automodel_cli.corpus.conversations.practice import PracticeRows
from automodel_cli.corpus.conversations.rows import RowSource
from automodel_cli.errors import DataError

TaskName = Literal["smoltalk", "mmlu_auxiliary", "gsm8k", "arc", "messages", "instructions", "practice"]
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Task:
    """One kind of rows.

    Attributes:
        conversation: reads a row; a DataError says why it is none.
        dataset, set_name, split, val_split: where the rows are on the Hub; None: nowhere by themselves.
        made: makes the rows, where they are not read.
    """

    conversation: Callable[[Mapping[str, Any]], Conversation]
    dataset: str | None = None
    set_name: str | None = None
    split: str = "train"
    val_split: str | None = None
    made: Callable[[], RowSource] | None = None


def lettered(question: str, choices: Sequence[str], answer: int) -> tuple[Message, list[str]]:
    """What the user asks, and for each choice what the assistant says who takes it.

    It begins with the choice's letter, so that letters alone can be compared.

    Raises:
        DataError: ``answer`` is none of the choices, or there are more than ten.
    """
    if not 0 <= answer < len(choices) <= len(_LETTERS):
        raise DataError(f"answer {answer} of {len(choices)} choices", "expected the index of a choice, of up to ten")
    answers = [f"{letter}: {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    return Message("user", f"{question}\n\n" + "\n".join(answers)), answers


def multiple_choice(question: str, choices: Sequence[str], answer: int) -> Conversation:
    """A question with lettered choices, and the right one as its answer.

    Raises:
        DataError: as ``lettered``.
    """
    asked, answers = lettered(question, choices, answer)
    return (asked, Message("assistant", answers[answer]))


def mmlu_question(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Question, choices and the number of the right one in a row of MMLU."""
    inner = row.get("train")  # the configuration auxiliary_train nests its rows
    row = inner if isinstance(inner, Mapping) else row
    return row_text(row, "question"), _texts(row, "choices"), _of(row, "answer", int)


def arc_question(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """The same in a row of ARC."""
    choices = _of(row, "choices", Mapping)
    labels = _texts(choices, "label")
    key = row_text(row, "answerKey")
    if key not in labels:
        raise DataError(f"answerKey {key[:20]!r} is none of {', '.join(labels)[:40]}", "expected the label of a choice")
    return row_text(row, "question"), _texts(choices, "text"), labels.index(key)


def _gsm8k(row: Mapping[str, Any]) -> Conversation:
    answer = _CALCULATION.sub("", row_text(row, "answer"))
    return (Message("user", row_text(row, "question")), Message("assistant", answer))


TASKS: Mapping[str, Task] = {
    "smoltalk": Task(parse_row, "HuggingFaceTB/smoltalk", "all", val_split="test"),
    "mmlu_auxiliary": Task(
        lambda row: multiple_choice(*mmlu_question(row)), "cais/mmlu", "all", "auxiliary_train", "validation"
    ),
    "gsm8k": Task(_gsm8k, "openai/gsm8k", "main", val_split="test"),
    "arc": Task(
        lambda row: multiple_choice(*arc_question(row)), "allenai/ai2_arc", "ARC-Challenge", val_split="validation"
    ),
    "messages": Task(parse_row),
    "instructions": Task(parse_pair),
    "practice": Task(parse_row, made=PracticeRows),
}


def _of(row: Mapping[str, Any], key: str, kind: Any) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"column {key!r} is {type(value).__name__}", "is it the data set that the task is made for?")
    return value


def row_text(row: Mapping[str, Any], key: str) -> str:
    """The text in a column.

    Raises:
        DataError: it has something else.
    """
    return checked_text(_of(row, key, str))


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    found = _of(row, key, list)
    return [row_text({key: one}, key) for one in found]
