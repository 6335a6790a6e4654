"""Small tokenizers of the kinds that are in use, built with the ``tokenizers`` package."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import (
    BertWordPieceTokenizer,
    CharBPETokenizer,
    Regex,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXTS = [
    "hello world, once more. The café in 漢字 costs 5€!\n\n  indented\tcode = x  # ok",
    "It's a test; don't  stop. (a) <b> [c]",
    "naïve 👍🏽 emoji, Привет",
]
END = "<|endoftext|>"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*, prefix_space: bool = False, pattern: str | None = None) -> Tokenizer:
    """GPT-2's kind, or Llama-3's with its ``pattern``."""
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=pattern is None)
    made.pre_tokenizer = split
    if pattern is not None:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), split])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS * 20,
        trainers.BpeTrainer(vocab_size=330, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    return made


def sentencepiece_bpe() -> Tokenizer:
    """Llama-2's kind: a space before each text, bytes for unknown characters."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *spelled],
        limit_alphabet=50,
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 20, trainer)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    body = json.loads(made.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] not in spelled]
    return Tokenizer.from_str(json.dumps(body))


def unigram() -> Tokenizer:
    """A space before each text, an unknown token."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=130, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS * 20, trainer)
    return made


def with_added(made: Tokenizer) -> Tokenizer:
    """Letters of the byte-level alphabet among what is added."""
    made.add_tokens(["café", "đem", "<tool>"])
    return made


def t5s_unigram() -> Tokenizer:
    """Joins white space, and rewrites characters (NFKC)."""
    made = SentencePieceUnigramTokenizer()
    made.train_from_iterator(
        TEXTS * 20, vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    return Tokenizer.from_str(made.to_str())


def wordpiece() -> Tokenizer:
    """BERT's."""
    made = BertWordPieceTokenizer()
    made.train_from_iterator(TEXTS * 20, vocab_size=200, show_progress=False)
    return Tokenizer.from_str(made.to_str())


def end_of_word() -> Tokenizer:
    """GPT-1's and CLIP's: ``</w>`` ends a word."""
    made = CharBPETokenizer()
    made.train_from_iterator(TEXTS * 20, vocab_size=200, show_progress=False)
    return Tokenizer.from_str(made.to_str())


def words() -> Tokenizer:
    """One id a word."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS * 20, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return made


KEEP_TEXTS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "prefix space": lambda: byte_level(prefix_space=True),
    "llama3": lambda: byte_level(pattern=_LLAMA3),
    "sentencepiece bpe": sentencepiece_bpe,
    "unigram": unigram,
    "gpt2 with added": lambda: with_added(byte_level()),
    "sentencepiece with added": lambda: with_added(sentencepiece_bpe()),
}
CHANGE_TEXTS: dict[str, Callable[[], Tokenizer]] = {
    "t5": t5s_unigram,
    "wordpiece": wordpiece,
    "end of word": end_of_word,
    "words": words,
}
