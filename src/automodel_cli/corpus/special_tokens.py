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

from automodel_cli.corpus.engines import Engine, Sampled
from automodel_cli.corpus.tokenizer_base import Tokenizer

SpecialTokens = Literal["parse", "text"]


class TextEncoder:
    """One text to its ids, special tokens as asked for. ``before`` and ``after`` are to be put around each text."""

    def __init__(
        self, tokenizer: Tokenizer, *, special_tokens: SpecialTokens, add_special_tokens: bool
    ) -> None:
        before, after = tokenizer.added_ids() if add_special_tokens else ([], [])
        self.before = np.array(before, dtype=np.uint32)
        self.after = np.array(after, dtype=np.uint32)
        self._engine = tokenizer.engine
        self.encode: Callable[[str], np.ndarray] = self._engine.encode
        if special_tokens == "parse":
            self.encode = _parsing(self._engine, tokenizer.parsing_engine(), tokenizer.special_texts())

    def bound_memory(self) -> None:
        """Between two units of work: the fast engine may forget what it remembered."""
        if isinstance(self._engine, Sampled):
            self._engine.bound_memory()


def _parsing(
    plain: Engine, parsing: Engine, spellings: tuple[str, ...] | None
) -> Callable[[str], np.ndarray]:
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
