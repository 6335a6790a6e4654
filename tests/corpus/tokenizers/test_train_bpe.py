"""Training a BPE: size, determinism, exact round trips, and what Hugging Face's AutoTokenizer makes of it."""

from pathlib import Path

import pytest

from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.errors import ConfigError, DataError

TEXTS = ["the quick brown fox jumps over the lazy dog " * 20, "naïve café, 1999's best\n" * 10]


def test_size_determinism_and_round_trip() -> None:
    first, second = train_bpe(TEXTS, 300), train_bpe(iter(TEXTS), 300)
    assert first.vocab_size == 300 and first.fingerprint() == second.fingerprint()
    assert first.eot_id == first.bos_id == 0
    unseen = "日本語 \x00 <|endoftext|> Zqx\r\n"
    assert first.decode(first.encode(unseen)) == unseen
    assert len(first.encode(" quick brown")) == 2  # frequent words became one token each
    assert first.cuts_at_spaces


def test_saved_folder_opens_with_auto_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the naïve fox's best 日本"
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == 0 and len(theirs) == 300


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="256 bytes"):
        train_bpe(TEXTS, 256)
    with pytest.raises(ConfigError, match="is beyond 16,777,216"):
        train_bpe(TEXTS, 10**30)
    with pytest.raises(DataError, match="enough for"):
        train_bpe(["ab"], 400)


def test_fast_engine_serves_a_trained_tokenizer() -> None:
    pytest.importorskip("gigatoken", reason="the extra [fast] is not installed")
    assert train_bpe(TEXTS, 300).use_engine("fast").startswith("gigatoken")
