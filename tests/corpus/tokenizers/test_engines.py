"""Engines: what the start-up probe and the sampled check do when a fast engine is right, wrong, or broken."""

import numpy as np
import pytest

from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.tokenizers import engines
from automodel_cli.corpus.tokenizers.engines import (
    CheckedEngine,
    EngineMismatch,
    first_difference,
    probe_texts,
)
from automodel_cli.errors import ConfigError


class Bytes:
    """Encodes to UTF-8 bytes, except for texts that hold ``wrong_on``."""

    def __init__(self, wrong_on: str | None = None, breaks: bool = False) -> None:
        self.name, self.wrong_on, self.breaks = "bytes", wrong_on, breaks

    def encode(self, text: str) -> np.ndarray:
        if self.breaks:
            raise RuntimeError("no")
        odd = self.wrong_on is not None and self.wrong_on in text
        return np.frombuffer(text.encode() + b"!" * odd, dtype=np.uint8)


def test_probes_are_fixed_clean_and_wide() -> None:
    texts = probe_texts()
    assert len(texts) == 1000 and texts == probe_texts.__wrapped__()
    joined = "".join(texts)
    joined.encode()  # no lone surrogates
    assert "<|endoftext|>" in joined and "'ll" in joined and "\u3000" in joined
    assert max(map(ord, joined)) > 0xFFFF and len(set(joined)) > 150


def test_probe_finds_wrong_and_broken_engines() -> None:
    assert first_difference(Bytes(), Bytes(), probe_texts()) is None
    found = first_difference(Bytes(wrong_on="\u2029"), Bytes(), probe_texts())
    assert found is not None and "\u2029" in found
    assert first_difference(Bytes(breaks=True), Bytes(), probe_texts()) == probe_texts()[0]


def test_sampled_check_sees_a_systematic_difference_and_costs_little() -> None:
    calls = []

    class Counting(Bytes):
        def encode(self, text: str) -> np.ndarray:
            calls.append(text)
            return super().encode(text)

    sampled = CheckedEngine(Bytes(), Counting())
    for _ in range(20000):
        sampled.encode("x" * 1000)
    assert 15 <= len(calls) <= 25  # the first, then one in a thousand
    wrong = CheckedEngine(Bytes(wrong_on="q"), Bytes())
    with pytest.raises(EngineMismatch, match="different ids"):
        for _ in range(3000):
            wrong.encode("a q")


def test_choice_of_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.use_engine() == "bytes"  # there is no faster one
    with pytest.raises(ConfigError, match="no fast engine"):
        tokenizer.use_engine("fast")
    monkeypatch.setattr(ByteTokenizer, "_fast_engine", lambda self: Bytes(wrong_on="'ll"))
    assert "disagreed" in tokenizer.use_engine() and tokenizer.engine.name == "bytes"
    with pytest.raises(ConfigError, match="disagrees"):
        tokenizer.use_engine("fast")
    monkeypatch.setattr(ByteTokenizer, "_fast_engine", lambda self: Bytes())
    assert tokenizer.use_engine() == "bytes, checked against bytes"
    assert isinstance(tokenizer.engine, CheckedEngine)
    assert tokenizer.use_engine("reference") == "bytes"


def test_without_gigatoken_there_is_no_fast_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gigatoken", None)  # import raises ImportError
    assert engines.gigatoken_from_ranks(b"", "gpt2") is None
    assert engines.gigatoken_from_hf("{}") is None


def test_a_vocabulary_that_gigatoken_refuses_has_no_fast_engine() -> None:
    pytest.importorskip("gigatoken", reason="the extra [fast] is not installed")
    assert engines.gigatoken_from_ranks(b"not a rank file", "gpt2") is None
    assert engines.gigatoken_from_hf('{"version": "1.0"}') is None


def test_memory_of_the_fast_engine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built anew when the process has grown or much was encoded, and gives the same ids."""
    built, grown = [], [0]

    def build() -> Bytes:
        built.append(1)
        return Bytes()

    monkeypatch.setattr(engines, "_resident_bytes", lambda: grown[0])
    monkeypatch.setattr(engines, "version", lambda name: "0")
    sampled = CheckedEngine(engines.GigatokenEngine(build), Bytes())

    def use() -> int:
        sampled.bound_memory()
        assert sampled.encode("abc").tolist() == [97, 98, 99]
        return len(built)

    sizes = (0, 5, engines.CACHE_BYTES + 5, engines.CACHE_BYTES + 6, 50 << 20, 60 << 20)
    counts = []
    for grown[0] in sizes:
        counts.append(use())
    assert counts == [1, 1, 1, 2, 2, 2]  # the first unit's own memory (5) does not count
    monkeypatch.setattr(engines, "FORGET_AFTER", 6)
    assert [use() for _ in range(5)] == [3, 3, 4, 4, 5]
