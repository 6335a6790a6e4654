"""The chat tasks: where their rows are, how a row is asked, how an answer is graded.

| task               | rows (on the Hub)          | columns                                                 | chance |
|--------------------|----------------------------|---------------------------------------------------------|--------|
| arc_easy_chat      | allenai/ai2_arc, test      | question, choices {text, label}, answerKey              | 0.25   |
| arc_challenge_chat | allenai/ai2_arc, test      | the same                                                | 0.25   |
| mmlu_chat          | cais/mmlu, test            | question, choices, answer (index)                       | 0.25   |
| gsm8k_chat         | openai/gsm8k, test         | question, answer ("... #### 42")                        | 0      |
| humaneval_chat     | openai/openai_humaneval    | prompt, test, entry_point                               | 0      |
| ifeval_chat        | google/IFEval, train       | prompt, instruction_id_list, kwargs                     | 0      |

Questions are asked as a user asks, without worked examples, in the checkpoint's chat format; those that mid-training
has too are rendered by the same functions (``corpus.conversations.tasks``). ChatCORE is the mean of the centered scores
of the first five, as in nanochat; IFEval is reported beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from automodel_cli.corpus.conversations import tasks as rows
from automodel_cli.corpus.conversations.conversation import Conversation, Message
from automodel_cli.errors import DataError
from automodel_cli.evaluation.chat import instructions

VERSION = 1
"""Raised when prompts or grading change, so that old and new scores are not compared."""

_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_LAST_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What is asked.

    ``answers`` and ``gold`` where one of several is right; ``row`` is for who grades what was written.
    """

    conversation: Conversation
    row: Mapping[str, Any]
    answers: Sequence[str] = ()
    gold: int = 0


@dataclass(frozen=True)
class Grades:
    """Which answers are right, and further figures for the results file."""

    correct: Sequence[bool]
    more: Mapping[str, Any] = field(default_factory=dict)


Grader = Callable[[Sequence[Question], Sequence[str]], Grades]


@dataclass(frozen=True)
class ChatTask:
    """One task.

    Attributes:
        read: a row's question; a DataError says why it is none.
        dataset, set_name, split: where the rows are on the Hub.
        chance: the score of guessing, 0 to 1.
        max_new_tokens: of a written answer; 0: letters are compared.
        grade: of what was written; None: letters are compared, or generated code has to be run.
        runs_code: whether grading runs what the model wrote.
    """

    name: str
    read: Callable[[Mapping[str, Any]], Question]
    dataset: str
    set_name: str | None
    split: str = "test"
    chance: float = 0.0
    max_new_tokens: int = 0
    grade: Grader | None = None
    runs_code: bool = False


# --------------------------------------------------------------------------------------------- questions


def _choosing(of_row: Callable[[Mapping[str, Any]], tuple[str, list[str], int]]) -> Callable[..., Question]:
    def read(row: Mapping[str, Any]) -> Question:
        question, choices, gold = of_row(row)
        asked, answers = rows.lettered(question, choices, gold)
        return Question((asked,), row, answers, gold)

    return read


def _gsm8k(row: Mapping[str, Any]) -> Question:
    asked, answer = rows.TASKS["gsm8k"].conversation(row)
    if not strict_number(answer.content):
        raise DataError("column 'answer' has no '#### NUMBER'", "is it the data set that the task is made for?")
    return Question((asked,), row)


def _humaneval(row: Mapping[str, Any]) -> Question:
    for key in ("test", "entry_point"):
        rows.row_text(row, key)
    if not row["entry_point"].isidentifier():
        raise DataError("column 'entry_point' is no name", "is it the data set that the task is made for?")
    return Question((Message("user", rows.row_text(row, "prompt")),), row)


def _ifeval(row: Mapping[str, Any]) -> Question:
    instructions.check_row(row)
    return Question((Message("user", rows.row_text(row, "prompt")),), row)


# ----------------------------------------------------------------------------------------------- grading


def strict_number(text: str) -> str:
    """The number behind the first ``####``, without commas; empty where there is none."""
    found = _NUMBER.search(text)
    return _plain(found[1]) if found else ""


def flexible_number(text: str) -> str:
    """The last number of a text, whatever stands before it."""
    found = _LAST_NUMBER.findall(text)
    return _plain(found[-1]) if found else ""


def _plain(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def _grade_gsm8k(questions: Sequence[Question], texts: Sequence[str]) -> Grades:
    wanted = [strict_number(question.row["answer"]) for question in questions]
    strict = [strict_number(text) == number for text, number in zip(texts, wanted, strict=True)]
    flexible = [flexible_number(text) == number for text, number in zip(texts, wanted, strict=True)]
    return Grades(strict, {"flexible_accuracy": sum(flexible) / len(flexible)})


def program(question: Question, text: str) -> str:
    """What decides on a written function: ``prompt + completion + test + check(entry_point)``, as HumanEval has it.

    The completion is the first block of code of the answer, or all of it. It may be the function's body or the whole
    function anew: the prompt ends with a docstring, which is a body too.
    """
    row, fenced = question.row, _FENCE.search(text)
    completion = fenced[1] if fenced else text
    return f"{row['prompt']}{completion}\n{row['test']}\ncheck({row['entry_point']})\n"


def _grade_ifeval(questions: Sequence[Question], texts: Sequence[str]) -> Grades:
    strict = [instructions.followed(q.row, text) for q, text in zip(questions, texts, strict=True)]
    loose = [instructions.followed(q.row, text, loosely=True) for q, text in zip(questions, texts, strict=True)]
    each_strict, each_loose = ([verdict for of_one in verdicts for verdict in of_one] for verdicts in (strict, loose))
    more = {
        "prompt_level_loose": sum(map(all, loose)) / len(loose),
        "instruction_level_strict": sum(each_strict) / len(each_strict),
        "instruction_level_loose": sum(each_loose) / len(each_loose),
        "instructions": len(each_strict),
    }
    return Grades([all(of_one) for of_one in strict], more)


_ARC, _MMLU = _choosing(rows.arc_question), _choosing(rows.mmlu_question)
_TABLE = (
    ChatTask("arc_easy_chat", _ARC, "allenai/ai2_arc", "ARC-Easy", chance=0.25),
    ChatTask("arc_challenge_chat", _ARC, "allenai/ai2_arc", "ARC-Challenge", chance=0.25),
    ChatTask("mmlu_chat", _MMLU, "cais/mmlu", "all", chance=0.25),
    ChatTask("gsm8k_chat", _gsm8k, "openai/gsm8k", "main", max_new_tokens=512, grade=_grade_gsm8k),
    ChatTask("humaneval_chat", _humaneval, "openai/openai_humaneval", None, max_new_tokens=512, runs_code=True),
    ChatTask("ifeval_chat", _ifeval, "google/IFEval", None, "train", max_new_tokens=1280, grade=_grade_ifeval),
)
TASKS: Mapping[str, ChatTask] = {task.name: task for task in _TABLE}
CHATCORE = tuple(task.name for task in _TABLE[:5])
GROUPS: Mapping[str, tuple[str, ...]] = {"chatcore": tuple(TASKS)}
