"""Rows of each task as conversations."""

import pytest

from automodel_cli.config.schema import chat
from automodel_cli.corpus.conversations import tasks
from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.conversations.tasks import TASKS
from automodel_cli.errors import DataError


def turns(task, row):
    return [(message.role, message.content) for message in TASKS[task].conversation(row)]


def test_the_schema_names_the_tasks_that_there_are() -> None:
    assert chat.TaskName.__args__ == tasks.TaskName.__args__ == tuple(TASKS)


def test_gsm8k_without_the_calculators_annotations() -> None:
    answer = "He has 48/2=<<48/2=24>>24 < 25.\nSo 24+48=<<24+48=72>>72.\n#### 72"
    assert turns("gsm8k", {"question": "How many?", "answer": answer}) == [
        ("user", "How many?"),
        ("assistant", "He has 48/2=24 < 25.\nSo 24+48=72.\n#### 72"),
    ]


QUESTION = ("user", "Which is a star?\n\nA: Moon\nB: Sun\nC: Mars")


@pytest.mark.parametrize("nested", [False, True])
def test_mmlu_as_lettered_choices(nested) -> None:
    row = {"question": "Which is a star?", "choices": ["Moon", "Sun", "Mars"], "answer": 1, "subject": ""}
    assert turns("mmlu_auxiliary", {"train": row} if nested else row) == [QUESTION, ("assistant", "B: Sun")]


@pytest.mark.parametrize(("labels", "key"), [(["A", "B", "C"], "C"), (["1", "2", "3"], "3")])
def test_arc_by_its_labels(labels, key) -> None:
    choices = {"text": ["Moon", "Sun", "Mars"], "label": labels}
    row = {"id": "x", "question": "Which is a star?", "choices": choices, "answerKey": key}
    assert turns("arc", row) == [QUESTION, ("assistant", "C: Mars")]


def test_smoltalk_and_pairs() -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": "x"}
    assert turns("smoltalk", row) == turns("messages", row) == [("user", "a"), ("assistant", "b")]
    assert turns("instructions", {"instruction": "a", "output": "b"}) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("gsm8k", {"question": "x"}, "'answer' is NoneType"),
        ("mmlu_auxiliary", {"question": "x", "choices": ["a"], "answer": "a"}, "'answer' is str"),
        ("mmlu_auxiliary", {"question": "x", "choices": ["a", "b"], "answer": 2}, "answer 2 of 2"),
        ("mmlu_auxiliary", {"question": "x", "choices": ["a", None], "answer": 0}, "'choices' is NoneType"),
        ("arc", {"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "'B' is none of A"),
        ("instructions", {"messages": [{"role": "user", "content": "x"}]}, "holds no conversation"),
    ],
)
def test_other_rows_are_named(task, row, says) -> None:
    with pytest.raises(DataError, match=says):
        TASKS[task].conversation(row)


def test_a_multiple_choice_answer_begins_with_its_letter() -> None:
    asked, said = tasks.multiple_choice("Q?", ["x", "y"], 0)
    assert (asked, said) == (Message("user", "Q?\n\nA: x\nB: y"), Message("assistant", "A: x"))
