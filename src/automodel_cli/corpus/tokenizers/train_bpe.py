"""Train a byte-level BPE on one's own text, and save it so that ours and Hugging Face's readers open it.

The pattern that splits text is GPT-2's. Training counts words and merges pairs in a fixed order, so the same text
gives the same bytes. ``<|endoftext|>`` is id 0; every byte has an id, so any text can be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from automodel_cli.corpus.tokenizers.base import MAX_VOCAB
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.errors import ConfigError, DataError

EOT = "<|endoftext|>"
SMALLEST_VOCAB = 257  # 256 bytes and end of text
_CONFIG: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": EOT,
    "clean_up_tokenization_spaces": False,
    "eos_token": EOT,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": EOT,
}


def train_bpe(texts: Iterable[str], vocab_size: int, *, name: str = "bpe") -> HFTokenizer:
    """A tokenizer of ``vocab_size`` entries learned from ``texts``, which are read once.

    Raises:
        ConfigError: ``vocab_size`` is below 257, or beyond what a tokenizer may have.
        DataError: there is too little text for that many entries.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ConfigError(
            f"a byte-level vocabulary of {vocab_size} entries does not hold the 256 bytes and {EOT}",
            f"use --vocab-size {SMALLEST_VOCAB} or more",
        )
    if vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"a vocabulary of {vocab_size:,} entries is beyond {MAX_VOCAB:,}", "use a smaller --vocab-size"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    reached = tokenizer.get_vocab_size()
    if reached != vocab_size:
        raise DataError(
            f"the text is only enough for {reached:,} entries, not {vocab_size:,}",
            f"give more text, or --vocab-size {reached}",
        )
    config_json = json.dumps(_CONFIG, indent=2) + "\n"
    return HFTokenizer(name, tokenizer_json=tokenizer.to_str(pretty=True), config_json=config_json)


def _batches(texts: Iterable[str], characters: int = 1 << 20) -> Iterator[list[str]]:
    """Lists of about a million characters: small enough to stay flat, large enough to keep cores busy."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
