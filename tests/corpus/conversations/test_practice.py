"""Practice: examples that are there without a data set, the same on every machine."""

from __future__ import annotations

import numpy as np

from automodel_cli.corpus.conversations.conversation import parse_row
from automodel_cli.corpus.conversations.practice import ROWS, PracticeRows, example


def test_examples_are_conversations_and_never_change():
    rows = PracticeRows()
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[[3, 7, ROWS - 1]] = True
    found = list(rows.rows(chosen))
    assert [number for _, number, _ in found] == [3, 7, ROWS - 1]
    assert [parse_row(row) for _, _, row in found] == [example(number) for number in (3, 7, ROWS - 1)]
    assert [(turn.role, turn.content) for turn in example(10)] == [
        ("system", "You are a patient teacher."),
        ("user", "What is the capital of Italy?"),
        ("assistant", "The capital of Italy is Rome."),
    ]


def test_answers_are_right():
    asked = answered = 0
    for number in range(300):
        turns = [turn for turn in example(number) if turn.role != "system"]
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            asked += 1
            if " + " in question.content:
                a, b = question.content.removeprefix("What is ").removesuffix("?").split(" + ")
                assert int(answer.content) == int(a) + int(b)
                answered += 1
            elif question.content.startswith("Spell "):
                assert answer.content.replace("-", "") == question.content.split()[1].removesuffix(".")
                answered += 1
    assert asked > answered > 50
