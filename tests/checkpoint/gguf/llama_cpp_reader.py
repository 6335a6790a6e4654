"""What llama.cpp makes of a GGUF file, through llama-cpp-python: tokens, logits, and what it says when left alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed (pip builds it from source)"
)
F32 = 0  # ggml's number of the type


class LlamaCpp:
    """A file opened by llama.cpp, with all of its own in single precision."""

    def __init__(self, path: Path, context: int) -> None:
        llama_cpp = pytest.importorskip(
            "llama_cpp", reason="llama-cpp-python is not installed: it is built from source"
        )
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=1,
            logits_all=True,
            type_k=F32,
            type_v=F32,
            verbose=False,
        )

    def encode(self, text: str) -> list[int]:
        return list(self.model.tokenize(text.encode(), add_bos=False, special=False))

    def parse(self, text: str) -> list[int]:
        """With special tokens in the text read as such."""
        return list(self.model.tokenize(text.encode(), add_bos=False, special=True))

    def ends(self, index: int) -> bool:
        """Whether generation stops at a token."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self.model._model.vocab, index))

    def logits(self, ids: list[int]) -> np.ndarray:
        """``[T, V]``"""
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def greedy(self, ids: list[int], number: int) -> list[int]:
        said = list(ids)
        self.model.reset()
        new = said
        for _ in range(number):
            self.model.eval(new)
            new = [int(self.model.scores[self.model.n_tokens - 1].argmax())]
            said += new
        return said[len(ids) :]
