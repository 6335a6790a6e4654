"""Tokenizers of every kind with ChatML's marks."""

import json
from collections.abc import Callable

import tiktoken
from tokenizers import Tokenizer as Backend

from automodel_cli.corpus.conversations.chatml import END, START, with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, TiktokenTokenizer, Tokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe

TEXT = "system user assistant tool Hello there, how are you? I am fine.\nÉté 漢字 <|endoftext|>"


def small_tiktoken() -> TiktokenTokenizer:
    """GPT-2's pattern over bytes and a few pairs."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"he": 256, b"us": 257, b"er": 258, b"\n\n": 259}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": 260, "<|fim|>": 263}
    encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return TiktokenTokenizer(encoding)


def trained() -> HFTokenizer:
    """A byte-level BPE."""
    return train_bpe([TEXT * 3, "user\n\nassistant " * 50], 300, name="tiny")


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "tiktoken": small_tiktoken,
    "hf": trained,
    "byte": ByteTokenizer,
    "char": lambda: CharTokenizer(TEXT + START + END + "[UNK]<s>"),
}


def chatml_of(kind: str) -> Tokenizer:
    """The tokenizer of a kind, with the marks."""
    return with_chatml(MAKERS[kind]())


def templated(template: str, backend: Backend | None = None, **config: str) -> HFTokenizer:
    """A tokenizer with marks and a chat template."""
    made = with_chatml(trained() if backend is None else HFTokenizer("x", tokenizer_json=backend.to_str()))
    assert isinstance(made, HFTokenizer)
    settings = {"chat_template": template, "eos_token": "<|endoftext|>", **config}
    return HFTokenizer("templated", tokenizer_json=made._json, config_json=json.dumps(settings))
