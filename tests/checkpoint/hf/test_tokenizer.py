"""Tokenizer files for a Hugging Face folder: AutoTokenizer gives the ids that the original gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiktoken
import transformers

from automodel_cli.checkpoint.hf import tokenizer as hf_tokenizer
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import ChatML, with_chatml
from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, TiktokenTokenizer, load_tokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.errors import DataError

TEXT = "It's 1999's  best:\n\n\tnaïve café 漢字 👍🏽 we'll see 12345678, don't  \n x\n"
CL100K_LIKE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
MERGED = [b"th", b"he", b"the", b" the", b"in", b"er", b" w", b"ing", b"12", b"123", b"\n\n", b"  "]


def made_up(name: str, pattern: str, gap: int = 0) -> TiktokenTokenizer:
    """A small encoding with a real pattern; its special token may lie behind a gap."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {t: 256 + i for i, t in enumerate(MERGED)}
    special = {"<|endoftext|>": len(ranks) + gap}
    return TiktokenTokenizer(tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special))


def as_hf(tokenizer, folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer as transformers sees it in an exported folder."""
    source = folder / "source"
    tokenizer.save(source)
    target = folder / "target"
    target.mkdir()
    for name, content in hf_tokenizer.files_of(source):
        (target / name).write_bytes(content)
    assert load_tokenizer(target).fingerprint() == tokenizer.fingerprint()
    return transformers.AutoTokenizer.from_pretrained(target)


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(),
        made_up("cl100k-like", CL100K_LIKE, gap=5),
        made_up("gpt2", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
    ],
    ids=["byte", "cl100k-like", "gpt2-like"],
)
def test_the_ids_are_the_same_both_ways(tmp_path, tokenizer):
    theirs = as_hf(tokenizer, tmp_path)
    ids = tokenizer.encode(TEXT)
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == TEXT
    assert theirs.eos_token_id == tokenizer.eot_id


TURNS = (Message("user", "Is <|im_end|> text?"), Message("assistant", "Yes."), Message("user", "Oh!"))


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(),
        CharTokenizer("Is<|im_end>txt?Yes.Oh! \nruaolyp"),
        made_up("cl100k-like", CL100K_LIKE, gap=5),
        train_bpe(["Is it text? Yes. Oh! user assistant " * 20], 270),
    ],
    ids=["byte", "char", "tiktoken", "hf"],
)
def test_conversations_are_rendered_alike(tmp_path, tokenizer):
    made = with_chatml(tokenizer)
    theirs, chat = as_hf(made, tmp_path), ChatML(made)
    messages = [vars(turn) for turn in TURNS[1:]]
    assert theirs.apply_chat_template(messages)["input_ids"] == chat.render(TURNS[1:]).ids
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert asked == chat.prompt(TURNS[1:])
    again = chat_format_of(load_tokenizer(tmp_path / "target"))
    assert again.render(TURNS) == chat.render(TURNS) and again.stop_ids >= chat.stop_ids


def test_characters(tmp_path):
    tokenizer = CharTokenizer("abc \né漢")
    theirs = as_hf(tokenizer, tmp_path)
    text = "cab é漢\nb"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_that_cannot_be_converted_exactly_is_only_copied(tmp_path, monkeypatch):
    made_up("odd", r"\p{L}+|\P{L}").save(tmp_path)
    monkeypatch.setattr(hf_tokenizer, "_for_oniguruma", lambda pattern: r"\S+|\s+")
    hf_tokenizer._converted.cache_clear()
    lines: list[str] = []
    names = [name for name, _ in hf_tokenizer.files_of(tmp_path, say=lines.append)]
    assert names == ["automodel_tokenizer.json", "ranks.tiktoken"]
    assert "no exact Hugging Face form" in lines[0]


def test_merges_are_found_in_rank_order():
    ranks = {bytes([byte]): byte for byte in range(256)} | {t: 256 + i for i, t in enumerate(MERGED)}
    merges = hf_tokenizer.find_merges(ranks)
    assert [left + right for left, right in merges] == MERGED
    assert merges[2] == (b"th", b"e")


def test_real_gpt2(tmp_path):
    cache = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/tiktoken_cache"
    if not cache.is_dir():
        pytest.skip("GPT-2's vocabulary is not here (../shared/data/tokenizers)")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(cache)
    try:
        tokenizer = TiktokenTokenizer.named("gpt2")
    except DataError:
        pytest.skip("GPT-2's vocabulary is not in the tiktoken cache")
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
    theirs = as_hf(tokenizer, tmp_path)
    assert len(theirs) == 50257 and theirs.eos_token_id == 50256
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    config = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|endoftext|>"
