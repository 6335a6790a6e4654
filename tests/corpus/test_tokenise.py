"""Units to buffers: end-of-text on the right side, pieces of a document without it, cuts that change nothing."""

import random

import numpy as np
import pytest
import regex
import tiktoken_ext.openai_public as published

from automodel_cli.corpus import tokenise
from automodel_cli.corpus.tokenise import Tokeniser
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.train_bpe import train_bpe
from automodel_cli.corpus.units import ReadOptions, Unit


def tokeniser(eot: str) -> Tokeniser:
    return Tokeniser(ByteTokenizer(), ReadOptions(), eot)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("eot", "expected"),
    [("prepend", [256, 97, 256, 256, 98]), ("append", [97, 256, 256, 98, 256]), ("none", [97, 98])],
)
def test_end_of_text(eot: str, expected: list[int]) -> None:
    chunk = tokeniser(eot).encode(["a", "", "b"])
    assert chunk.tokens.tolist() == expected and chunk.tokens.dtype == np.uint16
    assert chunk.lengths.sum() == len(expected) and len(chunk.lengths) == 3


@pytest.mark.parametrize("eot", ["prepend", "append", "none"])
def test_pieces_of_a_document_join_to_the_whole(eot: str) -> None:
    whole = tokeniser(eot).encode(["abcdef"]).tokens.tolist()
    parts = [
        tokeniser(eot).encode(["ab"], unfinished=True),
        tokeniser(eot).encode(["cd"], continues=True, unfinished=True),
        tokeniser(eot).encode(["ef"], continues=True),
    ]
    assert [i for part in parts for i in part.tokens.tolist()] == whole


def test_narrowing_in_steps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {k} " * (k % 5) for k in range(50)]
    whole = tokeniser("prepend").encode(texts)
    monkeypatch.setattr(tokenise, "_CHARACTERS_AT_ONCE", 10)
    again = tokeniser("prepend").encode(texts)
    assert np.array_equal(again.tokens, whole.tokens) and np.array_equal(again.lengths, whole.lengths)


def test_a_unit_without_documents_is_empty() -> None:
    unit = Unit("jsonl", "a", 0, {}, payload=b'{"text": null}\n', size=15)
    chunk = tokeniser("prepend")(unit)
    assert len(chunk.tokens) == len(chunk.lengths) == 0
    assert (chunk.rows, len(chunk.bad), chunk.text_bytes) == (1, 1, 15)


def patterns() -> dict[str, str]:
    """The split patterns of tiktoken's encodings, taken from it without loading their ranks."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_tiktoken_bpe", lambda *args, **kwargs: {})
        patch.setattr(published, "data_gym_to_mergeable_bpe_ranks", lambda *args, **kwargs: {})
        for name in ("gpt2", "r50k_base", "cl100k_base", "o200k_base"):
            found[name] = getattr(published, name)()["pat_str"]
    return found


def test_a_cut_between_letter_and_space_never_crosses_a_match() -> None:
    """What ``cuts_at_spaces`` promises for the tiktoken encodings: cut texts give the same pieces."""
    rng = random.Random(0)
    parts = ["word", "Über", "漢字", "don't", "I'LL", "42", "é\u0301", "x\n", "/", "'s", ".", "!!"]
    parts += [" ", "  ", "\n", "\r\n", "\t"]
    for name, pattern in patterns().items():
        for _ in range(300):
            text = "".join(rng.choices(parts, k=20))
            whole = regex.findall(pattern, text)
            for k in range(1, len(text)):
                before, after = text[k - 1], text[k]
                if before.isalpha() and (after == " " or (after == "\n" and before.isascii())):
                    assert regex.findall(pattern, text[:k]) + regex.findall(pattern, text[k:]) == whole, (
                        name,
                        text,
                    )


def test_a_trained_bpe_keeps_that_promise() -> None:
    text = "the quick brown fox jumps over the lazy dog. Über naïve\ncafés isn't  it? " * 20
    tokenizer = train_bpe([text], 300)
    assert tokenizer.cuts_at_spaces
    whole = tokenizer.encode(text)
    for k in range(1, 400):
        if text[k - 1].isalpha() and text[k] in " \n":
            assert tokenizer.encode(text[:k]) + tokenizer.encode(text[k:]) == whole
