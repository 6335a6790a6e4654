"""Requests of the harness: split as its own ``hf`` model splits them, never an empty span, counted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.harness.requests import RequestEncoder
from automodel_cli.evaluation.span_scores import SpanScorer

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'automodel-cli[eval]'")

TEXTS = ("What is the capital", "Question: nothing", "a  b", "words and words", "é漢x")
ODD = [
    ("   ", "nothing"),
    ("Question: ", ""),
    ("<|endoftext|>What", " is"),
    ("", "<|endoftext|>What"),
    ("word " * 300, "words"),  # longer than the context
]


@pytest.fixture(scope="module")
def ours(tiny_hf):
    from automodel_cli.evaluation.harness.run import HarnessModel

    loaded = load_model(tiny_hf.folder)
    return HarnessModel(SpanScorer(loaded.model), loaded.tokenizer)


@pytest.fixture(scope="module")
def theirs(tiny_hf):
    pytest.importorskip("accelerate", reason="the harness' own hf model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny_hf.folder), device="cpu", batch_size=1, dtype="float32")


def asked(*pairs: tuple[str, str]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0, metadata=("some_task", 0, 1)) for pair in pairs]


def pairs_of(ours) -> list[tuple[str, str]]:
    """Texts cut at every character; the longest tokens among them, which are one token whatever is cut off."""
    longest = sorted((ours._ours.decode([i]).strip() for i in range(1, 400)), key=len)[-6:]
    cuts = [(text[:place], text[place:]) for text in (*TEXTS, *longest) for place in range(len(text))]
    return [*cuts, *ODD]


def answer_of(theirs, pair: tuple[str, str]) -> tuple[float, bool] | None:
    """What the harness' own model says; None where one of its assertions stops it."""
    try:
        (found,) = theirs.loglikelihood(asked(pair), disable_tqdm=True)
    except AssertionError:
        return None
    return found


def test_every_split_scores_as_the_harness_own_model(ours, theirs):
    before = dict(ours.requests.counts.get("some_task", {}))
    pairs = pairs_of(ours)
    found = ours.loglikelihood(asked(*pairs))
    refused = 0
    for pair, (score, greedy) in zip(pairs, found, strict=True):
        expected = answer_of(theirs, pair)
        assert -math.inf < score < 0, pair
        if expected is not None:
            assert score == pytest.approx(expected[0], rel=1e-5, abs=1e-5), pair
            assert greedy == expected[1], pair
        refused += expected is None
    assert refused > 5, "pairs whose continuation merges into the context must be among these"
    counts = ours.requests.counts["some_task"]
    assert counts["count"] - before.get("count", 0) == len(pairs)
    assert counts["split_moved_back"] - before.get("split_moved_back", 0) == refused - 1  # "   " has no context
    assert counts["context_cut"] - before.get("context_cut", 0) == 1


def test_a_merged_choice_is_scored_from_where_the_encodings_part(ours, theirs):
    word = max((ours._ours.decode([i]) for i in range(1, 400)), key=len)
    (whole,) = ours.tok_encode(word)
    (score, _), (unmerged, _) = ours.loglikelihood(asked((word[:-1], word[-1]), (word[:-1], "#")))
    expected = theirs.loglikelihood(asked(("", word), (word[:-1], "#")), disable_tqdm=True)
    assert ours.requests.pair(word[:-1], word[-1])[1:] == ([ours.prefix_token_id], [whole])
    assert [score, unmerged] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_what_cannot_be_scored_is_named(ours):
    with pytest.raises(DataError, match=r"some_task: an empty choice behind 'Answer:'") as error:
        ours.loglikelihood(asked(("Answer:", " yes"), ("Answer:", "")))
    assert "every choice needs a text" in error.value.hint
    with pytest.raises(DataError, match="some_task: an empty choice"):
        ours.loglikelihood(asked(("", "")))
    with pytest.raises(DataError, match=r"a continuation has [\d,]+ tokens, the model's context 192"):
        ours.loglikelihood(asked(("Answer:", " no" * 400)))


def test_an_answer_without_a_question_begins_with_the_first_token(ours):
    from lm_eval.api.instance import Instance

    settings = {"until": ["\n"], "max_gen_toks": 4}
    empty, first = (
        Instance("generate_until", {}, (text, settings), 0, metadata=("written", 0, 1))
        for text in ("", "<|endoftext|>")
    )
    written = ours.generate_until([empty, first])
    assert written[0] == written[1]
    assert ours.requests.counts["written"] == {"count": 2, "split_moved_back": 0, "context_cut": 0}


def test_without_a_first_token_only_texts_without_context_are_refused():
    def none() -> int:
        raise ConfigError("no first token")

    encoder = RequestEncoder(lambda text, **_: list(text.encode()), none, 16)
    assert encoder.pair("a", "b") == (("a", "b"), [97], [98])
    with pytest.raises(ConfigError):
        encoder.pair("", "b")


def test_a_tokenizer_that_makes_nothing_of_a_text():
    encoder = RequestEncoder(lambda text, **_: [1] * len(text.strip("\u200b")), lambda: 0, 16)
    with pytest.raises(DataError, match="makes no token"):
        encoder.pair("", "\u200b")
