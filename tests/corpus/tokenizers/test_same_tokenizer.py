"""Tokenizers that mean the same by an id."""

from __future__ import annotations

from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import extends


def test_special_tokens_that_were_added():
    byte, char = ByteTokenizer(), CharTokenizer("abc")
    assert extends(byte.with_special(["<a>", "<b>"]), byte)
    assert extends(byte.with_special(["<a>", "<b>"]), byte.with_special(["<a>"]))
    assert not extends(byte, byte) and not extends(byte, byte.with_special(["<a>"]))
    assert not extends(char.with_special(["<a>"]), byte)
    assert not extends(byte.with_special(["<a>", "<b>"]), byte.with_special(["<b>"]))
