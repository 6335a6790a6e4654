"""Special tokens as text or parsed; only texts that spell one out leave the fast engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from automodel_cli.corpus.tokenizer import ByteTokenizer, load_tokenizer
from automodel_cli.corpus.tokenizers.base import Tokenizer as Base
from automodel_cli.corpus.tokenizers.special_tokens import text_encoder


def make(folder: Path, *, normalized: bool = False, template: str | None = "<s> $A </s>") -> Base:
    tokenizer = Tokenizer(models.BPE({c: k for k, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalized:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=normalized) for t in ("<s>", "</s>")])
    if template:
        ids = [(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


class Counting:
    """An engine that counts the texts it gets."""

    name = "counting"

    def __init__(self, inner: object) -> None:
        self.inner, self.texts = inner, []

    def encode(self, text: str) -> np.ndarray:
        self.texts.append(text)
        return self.inner.encode(text)  # type: ignore[attr-defined]


def test_only_texts_that_spell_one_out_are_parsed(tmp_path: Path) -> None:
    tokenizer = make(tmp_path / "t")
    tokenizer.engine = plain = Counting(tokenizer.engine)  # type: ignore[assignment]
    encoder = text_encoder(tokenizer, "parse")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t/tokenizer.json"))
    texts = ["a", "a<s>b", "<", "</s>", "< s>", "", "x</s", "<s"]
    for text in texts:
        assert encoder(text).tolist() == theirs.encode(text, add_special_tokens=False).ids, text
    assert plain.texts == ["a", "<", "< s>", "", "x</s", "<s"]


def test_text_stays_text(tmp_path: Path) -> None:
    tokenizer = make(tmp_path / "t")
    encoder = text_encoder(tokenizer, "text")
    ids = encoder("a<s>b").tolist()
    assert len(ids) == 5 and max(ids) < 256


@pytest.mark.parametrize(
    ("template", "added"),
    [
        (None, ([], [])),
        ("<s> $A", ([256], [])),
        ("$A </s>", ([], [257])),
        ("<s> <s> $A </s>", ([256, 256], [257])),
    ],
)
def test_what_the_tokenizer_adds_by_itself(tmp_path: Path, template: str | None, added: tuple) -> None:
    tokenizer = make(tmp_path / "t", template=template)
    assert tokenizer.added_ids() == added


def test_special_tokens_that_are_looked_for_in_changed_text(tmp_path: Path) -> None:
    tokenizer = make(tmp_path / "t", normalized=True)
    assert tokenizer.special_texts() is None
    encoder = text_encoder(tokenizer, "parse")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t/tokenizer.json"))
    for text in ("A<S>b", "plain", ""):
        assert encoder(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


def test_bytes_have_none() -> None:
    encoder = text_encoder(ByteTokenizer(), "parse")
    assert encoder("<|endoftext|>").tolist() == list(b"<|endoftext|>")


def test_tiktoken_vocabularies(tmp_path: Path) -> None:
    import base64

    ranks = b"".join(b"%s %d\n" % (base64.b64encode(bytes([k])), k) for k in range(256))
    special = {"<|endoftext|>": 256, "<|x|>": 257}
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "ranks.tiktoken").write_bytes(ranks)
    body = {"kind": "tiktoken", "name": "mine", "pattern": r"\w+|\W", "special_tokens": special}
    from automodel_cli.corpus.tokenizer import TiktokenTokenizer

    tokenizer = TiktokenTokenizer.load(folder, json.loads(json.dumps(body)))
    encoder = text_encoder(tokenizer, "parse")
    assert encoder("a<|endoftext|><|x|>").tolist() == [97, 256, 257]
    assert tokenizer.engine.encode("<|x|>").tolist() == list(b"<|x|>")
