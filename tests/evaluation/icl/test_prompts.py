"""Rendered prompts against checked-in pages and against the published sampling, written out."""

from __future__ import annotations

import random

import pytest
from tests.evaluation.small_bundle import GOLDEN, SHOWN, golden_text

from automodel_cli.evaluation.icl.prompts import example_numbers, ordered, render
from automodel_cli.evaluation.icl.tasks import TASKS


@pytest.mark.parametrize("kind", SHOWN)
def test_three_rendered_prompts_of_each_kind(kind):
    assert golden_text(kind) == (GOLDEN / f"{kind}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [2, 5, 11, 12, 400])
def test_worked_examples_are_those_of_the_published_draw(count):
    for number in {0, 1, count // 2, count - 1}:
        others = [other for other in range(count) if other != number]
        wanted = min(10, count - 1)
        assert example_numbers(count, number, 10) == random.Random(1234 + number).sample(others, wanted)


def test_no_examples_where_there_are_no_others():
    assert example_numbers(1, 0, 10) == []
    assert example_numbers(7, 3, 0) == []


def test_order_is_the_published_shuffle():
    items = [{"n": n} for n in range(50)]
    expected = list(items)
    random.Random(1337).shuffle(expected)
    assert ordered(items) == expected
    assert ordered(items, 7) == expected[:7]
    assert items == [{"n": n} for n in range(50)]  # the caller's list stays


def test_only_the_ends_of_a_language_modelling_prompt_are_stripped():
    task = TASKS["lambada_openai"]
    without, with_answer = render(task, {"context": "  the end\n ", "continuation": " x"}, [])
    assert without == ("the end",) and with_answer == ("the end  x",)


def test_values_that_are_no_text():
    task = TASKS["piqa"]
    assert render(task, {"query": 1, "choices": [2, 3], "gold": 0}, []) == [
        ("1\nAnswer: 2",),
        ("1\nAnswer: 3",),
    ]
