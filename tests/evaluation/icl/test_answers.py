"""Answers cut out of what was written, and compared."""

from __future__ import annotations

import pytest

from automodel_cli.evaluation.icl.scores import extract_answer, is_answer, normalize


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" 2 + 3 = 5. #### 5\n\nQ: next", "5"),
        (" 2 + 3 = 5. #### 5Q: next", "5"),
        ("no mark at all\n\nmore", "no mark at all"),
        ("x #### 1 #### 2", "2"),
        ("Q: straight on #### 3", ""),
    ],
)
def test_extraction(written, answer):
    assert extract_answer(written, answer_mark=" #### ", stops=("\n\n", "Q:")) == answer


def test_nothing_to_cut():
    assert extract_answer("as it\n\nis") == "as it\n\nis"


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Beatles!", "beatles"), ("AN apple_a day", "apple day"), ("‘42’", "42"), ("theatre", "theatre")],
)
def test_normalisation(text, normal):
    assert normalize(text) == normal


def test_prefix_counts():
    assert is_answer("Paris, of course", ["the Paris"])
    assert not is_answer("In Paris", ["Paris"])
    assert is_answer("5 pens", ["4", "5"])


def test_an_accepted_answer_of_which_normalising_leaves_nothing():
    assert is_answer("a, because", ["$a$"]) and is_answer("The band", ["The"])
    assert not is_answer("Paris", ["$a$", "the", "...", ""])
    assert not is_answer("", ["", "the"])
