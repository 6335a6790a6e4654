"""Rules: the first that is broken counts; limits themselves are no break; presets are Gopher's numbers."""

import pickle

import pytest

from automodel_cli.corpus.filters.rules import FilterRules, with_preset

GOOD = " ".join(f"the word{k} has number{k} and that{k} of many{k * k}" for k in range(20))


def verdict(text: str, **limits: object) -> tuple[str, str] | None:
    found = FilterRules(**limits).judge(text)
    return None if found is None else (found.rule, found.found)


def test_the_limit_itself_stays():
    assert verdict("one two three", min_words=3, max_words=3, min_characters=13, max_characters=13) is None
    assert verdict("one two three", min_words=4) == ("min_words", "3")
    assert verdict("one two three", max_words=2) == ("max_words", "3")
    assert verdict("one two three", min_word_length=3.7) == ("min_word_length", "3.67")
    assert verdict("- a\nb", max_bullet_lines=0.5) is None
    assert verdict("- a\nb", max_bullet_lines=0.4) == ("max_bullet_lines", "0.50")


def test_the_first_rule_that_is_broken_counts():
    rules = FilterRules(min_words=10, max_symbol_ratio=0.1)
    assert rules.names == ("min_words", "max_symbol_ratio")
    assert rules.judge("# # #").rule == "min_words"
    assert rules.judge("# # # # " + GOOD) is None
    assert rules.judge("# " * 100 + GOOD).number == 2


def test_gopher_is_both_presets_with_their_numbers():
    rules = with_preset("gopher", {})
    assert (rules.min_words, rules.max_words, rules.min_stop_words) == (50, 100_000, 2)
    assert rules.max_top_ngrams == (0.20, 0.18, 0.16)
    assert rules.max_duplicate_ngrams == (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    assert len(rules.names) == 22
    assert with_preset("gopher-quality", {}).max_top_ngrams is None
    assert with_preset("gopher-repetition", {}).min_words is None
    assert with_preset(None, {}) is None


def test_single_limits_take_the_place_of_the_presets():
    rules = with_preset("gopher", {"min_words": 5, "max_bullet_lines": None})
    assert rules.min_words == 5 and rules.max_bullet_lines == 0.9


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GOOD, None),
        ("too short", "min_words"),
        (GOOD.replace("the ", "xxx ").replace("and ", "xxx ").replace("of ", "xxx "), "min_stop_words"),
        ("\n".join(f"{GOOD} {k} ..." for k in range(3)), "max_ellipsis_lines"),
        ("\n".join([f"the word{k} and that{k} has it{k}" for k in range(12)] * 2), "max_duplicate_lines"),
        (" ".join(["the cat and that dog"] * 30), "max_top_ngrams (2 words)"),
        (" ".join(f"{k} {k + 1} {k + 2}" for k in range(60)), "min_word_length"),
    ],
)
def test_gopher_leaves_out_poor_text(text, rule):
    found = with_preset("gopher", {}).judge(text)
    assert (found and found.rule) == rule


def test_rules_that_have_judged_can_be_pickled():
    rules = with_preset("gopher", {})
    rules.judge(GOOD)
    assert pickle.loads(pickle.dumps(rules)) == rules
