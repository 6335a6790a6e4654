"""Special tokens in a corpus: those that a tokenizer adds to every text, and those that a text spells out.

| choice                 | effect                                                                                   |
|------------------------|------------------------------------------------------------------------------------------|
| ``text`` (default)     | ``<|endoftext|>`` inside a document is text: data cannot end a document                  |
| ``parse``              | it becomes the special token, as Hugging Face's and Megatron's tools have it             |
| ``added``              | ids before and after each text (Llama's ``<s>``), as the tokenizer itself puts them      |
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Literal

import numpy as np

from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.corpus.tokenizers.engines import Engine

SpecialTokens = Literal["parse", "text"]


def text_encoder(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> Callable[[str], np.ndarray]:
    """One text to its ids, special tokens in it as asked for."""
    if special_tokens == "parse":
        return _parsing(tokenizer.engine, tokenizer.parsing_engine(), tokenizer.special_texts())
    return tokenizer.engine.encode


def _parsing(plain: Engine, parsing: Engine, spellings: tuple[str, ...] | None) -> Callable[[str], np.ndarray]:
    """Texts that spell out no special token go to the plain engine, which is the fast one where there is one."""
    if spellings == ():
        return plain.encode
    if spellings is None:
        return parsing.encode
    shared = _shared_beginning(spellings)  # looking for it costs a hundredth of the search
    search = re.compile("|".join(re.escape(text) for text in sorted(spellings, reverse=True))).search

    def encode(text: str) -> np.ndarray:
        if shared in text and search(text):
            return parsing.encode(text)
        return plain.encode(text)

    return encode


def _shared_beginning(texts: tuple[str, ...]) -> str:
    first, last = min(texts), max(texts)
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(pair[0] for pair in pairs)
