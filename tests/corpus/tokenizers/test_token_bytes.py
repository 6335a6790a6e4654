"""The bytes of a text's tokens add up to its length, or nobody says how many they are."""

from __future__ import annotations

import itertools

import pytest
import tiktoken
from tests.corpus.tokenizers.kinds_of_tokenizers import CHANGE_TEXTS, END, KEEP_TEXTS, TEXTS

from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, TiktokenTokenizer, Tokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.token_bytes import UNKNOWN

HELD_OUT = [
    "un café đem hello",
    "more  tests\n\tof the code",
    "The world's end. Don't!",
    "漢字 stop, Привет 👍🏽",
    "a",
    "a<tool>b <tool> c",
]


def hugging_face(kind: str) -> HFTokenizer:
    return HFTokenizer(kind, tokenizer_json=(KEEP_TEXTS | CHANGE_TEXTS)[kind]().to_str())


def tiktokens() -> Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" c": 258}
    return TiktokenTokenizer(
        tiktoken.Encoding("t", pat_str=r" ?\w+|\s+|.", mergeable_ranks=ranks, special_tokens={END: 259})
    )


KINDS = {
    **{kind: lambda kind=kind: hugging_face(kind) for kind in KEEP_TEXTS},
    "tiktoken": tiktokens,
    "byte": ByteTokenizer,
    "char": lambda: CharTokenizer("".join(TEXTS + HELD_OUT)),
}


# A token for unknown characters; added tokens that take a space with them where there is one.
UNTOLD = {"unigram": 7, "sentencepiece with added": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_they_add_up_to_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    known = tokenizer.text_bytes()
    assert known is not None
    measured = {text: known.of(tokenizer.encode(text)) for text in (*TEXTS, *HELD_OUT)}
    told = {text: size for text, size in measured.items() if size != UNKNOWN}
    assert told == {text: len(text.encode()) for text in told}
    assert len(told) >= len(measured) - UNTOLD.get(kind, 0), measured
    assert known.inside.tolist() == tokenizer.token_bytes().tolist()
    if tokenizer.eot_id is not None:
        assert known.inside[tokenizer.eot_id] == known.first[tokenizer.eot_id] == 0


@pytest.mark.parametrize("kind", ["sentencepiece bpe", "prefix space", "gpt2"])
def test_a_text_begins_behind_a_special_token(kind: str) -> None:
    tokenizer = hugging_face(kind)
    known = tokenizer.text_bytes()
    assert known is not None and tokenizer.eot_id is not None
    texts = HELD_OUT[:4]
    joined = list(itertools.chain.from_iterable([*tokenizer.encode(text), tokenizer.eot_id] for text in texts))
    assert known.of(joined) == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("kind", CHANGE_TEXTS)
def test_where_texts_are_changed_nothing_is_known(kind: str) -> None:
    tokenizer = hugging_face(kind)
    assert tokenizer.text_bytes() is None and tokenizer.token_bytes() is None


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "gpt2 with added", "sentencepiece with added"])
def test_every_text_comes_back(kind: str) -> None:
    """Added tokens with letters of the byte-level alphabet are spelled as they are."""
    tokenizer = hugging_face(kind)
    for text in (*TEXTS, *HELD_OUT[:5]):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()


def test_decoding_is_that_of_the_tokenizers_package() -> None:
    """Where nothing was added, parts of characters and special tokens included."""
    tokenizer = hugging_face("gpt2")
    plain = KEEP_TEXTS["gpt2"]()
    for first in range(tokenizer.vocab_size - 3):
        ids = [first, first + 2, first + 1]
        assert tokenizer.decode(ids) == plain.decode(ids, skip_special_tokens=False)
