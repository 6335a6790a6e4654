"""IFEval's instructions: verdicts by hand, and the same as the published code's on generated answers."""

from __future__ import annotations

import importlib.util
import itertools
import random

import pytest

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.chat import instructions

BY_HAND = [
    ("keywords:existence", {"keywords": ["Pear", "plum"]}, "A pear.\nA PLUM.", "A pear."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, going", "go"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "go", "go go"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a Cat!"),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 3, "let_relation": "at least"}, "eEe", "ee"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "##", "#"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "well-known", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Now"},
        'One.\n\n"Now, two.',
        "Now.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a] and b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yes.\np. s. no", "PS no"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S why", "P.S. why"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no. Bye.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Joy>>\ntext", "<< >>"),
    ("combination:two_responses", {}, "one******two", "one******one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say hi. Hi.", "Hi. Say hi."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So "THAT is all."', "That is all. Bye."),
    ("startend:quotation", {}, ' "yes" ', '"'),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


def row(name, kwargs) -> dict:
    return {"prompt": "p", "instruction_id_list": [name], "kwargs": [{**kwargs, "unused": None}]}


@pytest.mark.parametrize(("name", "kwargs", "yes", "no"), BY_HAND)
def test_by_hand(name, kwargs, yes, no) -> None:
    instructions.check_row(row(name, kwargs))
    assert instructions.followed(row(name, kwargs), yes) == [True]
    assert instructions.followed(row(name, kwargs), no) == [False]
    assert instructions.followed(row(name, kwargs), " \n") == [False]


def test_loosely() -> None:
    asked = row("startend:quotation", {})
    text = 'Of course!\n*"quoted"*\nI hope this helps.'
    assert instructions.followed(asked, text) == [False]
    assert instructions.followed(asked, text, loosely=True) == [True]


@pytest.mark.parametrize(
    "changed",
    [
        {"instruction_id_list": ["keywords:new"]},
        {"instruction_id_list": []},
        {"kwargs": []},
        {"kwargs": None},
        {"kwargs": [{"keywords": ["("]}]},
        {"kwargs": [{"keywords": 3}]},
        {"kwargs": [{"keywords": ["a", 3]}]},
        {"kwargs": [{"keywords": ["a{99999999999999999999}"]}]},
        {"kwargs": [{"keywords": ["(" * 9999 + ")" * 9999]}]},
        {"kwargs": [["keywords"]]},
        {"kwargs": [{}]},
        {"kwargs": ["x"]},
        {"instruction_id_list": [["keywords:existence"]]},
    ],
)
def test_rows_that_cannot_be_graded(changed) -> None:
    with pytest.raises(DataError):
        instructions.check_row({**row("keywords:existence", {"keywords": ["a"]}), **changed})


@pytest.mark.parametrize("changed", [{"nth_paragraph": -5}, {"nth_paragraph": 2.0}, {"first_word": 3}])
def test_arguments_that_only_some_answers_would_stumble_on(changed) -> None:
    good = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "now"}
    instructions.check_row(row("length_constraints:nth_paragraph_first_word", good))
    with pytest.raises(DataError, match=f"do not fit: {next(iter(changed))}"):
        instructions.check_row(row("length_constraints:nth_paragraph_first_word", {**good, **changed}))


def test_packages_that_are_missing(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("language:response_language", "length_constraints:number_sentences"):
        with pytest.raises(ConfigError, match="not installed") as caught:
            instructions.check_row(row(name, {"language": "en"}))
        assert "automodel-cli[ifeval]" in caught.value.hint


# ------------------------------------------------------------------------------------- the published code

PIECES = """\
*one*|**two**|***|******|\n|\n\n|* item|- item|[name]|[]|<<A title>>|"|p.s. yes|P.P.S. no|Section 1|Section 2|SECTION 3|
{"a": 1}|```json|```|My answer is yes.|, |. |word|Word|WORD|UPPER CASE|kind of|kindness|Is it?|Dr. No said so.|ééé|
Ein deutscher Satz folgt nun hier.|Any other questions?|'first'|Now|that is all|#|say it again|Mr. X left.|?!|3.14
"""
OTHERS = [
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}),
    ("change_case:english_capital", {}),
    ("change_case:english_lowercase", {}),
    ("language:response_language", {"language": "de"}),
    ("keywords:forbidden_words", {"forbidden_words": ["kind", "word"]}),
    ("keywords:existence", {"keywords": ["kind", "word"]}),
    ("keywords:frequency", {"keyword": "word ", "frequency": 2, "relation": "less than"}),
    ("detectable_content:postscript", {"postscript_marker": "p.s."}),
    ("startend:end_checker", {"end_phrase": " Any other questions? "}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it again"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "word"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "FIRST"}),
]


def written(number: int) -> str:
    """One of many answers, put together from what the instructions look for."""
    draw = random.Random(number)
    pieces = [piece.strip(" ") for piece in PIECES.replace("|\n", "|").rstrip("\n").split("|")]
    text = draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randint(1, 9)))
    return draw.choice([str, str.upper, str.lower])(text)


def test_verdicts_are_those_of_the_published_code() -> None:
    for name in ("lm_eval", "langdetect", "immutabledict"):
        pytest.importorskip(name)
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("nltk's punkt_tab is not on this machine")
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    asked = [(name, kwargs) for name, kwargs, *_ in BY_HAND if kwargs.get("letter") != "#"] + OTHERS
    assert {name for name, _ in asked} == set(instructions._CHECKS)
    true = 0
    for number, (name, kwargs) in itertools.product(range(60), asked):
        text, own = written(number), row(name, kwargs)
        example = utils.InputExample(0, own["instruction_id_list"], "p", own["kwargs"])
        for loosely, published in (
            (False, utils.test_instruction_following_strict),
            (True, utils.test_instruction_following_loose),
        ):
            verdicts = instructions.followed(own, text, loosely=loosely)
            assert verdicts == published(example, text).follow_instruction_list, (name, kwargs, text, loosely)
            true += sum(verdicts)
    assert true > 500
