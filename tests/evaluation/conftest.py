"""A tiny Hugging Face GPT-2 with a tokenizer of its own, and task data to put to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tests.evaluation.small_bundle import ITEMS, write_bundle

END = "<|endoftext|>"


@dataclass(frozen=True)
class TinyHF:
    """A folder, and what transformers makes of it."""

    folder: Path
    model: Any
    tokenizer: Any


def train_tokenizer(folder: Path) -> Any:
    """A byte-level BPE of 400 ids, trained on our own questions."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator((str(item) for items in ITEMS.values() for item in items), trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> TinyHF:
    """Random but fixed weights, large enough that the likeliest token is often a repetition and ties are rare."""
    folder = tmp_path_factory.mktemp("tiny_hf")
    tokenizer = train_tokenizer(folder)
    torch.manual_seed(11)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=192,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(3)
    model.save_pretrained(folder)
    return TinyHF(folder, model, tokenizer)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own questions in the published layout."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "eval_bundle")


@pytest.fixture(scope="session")
def real_bundle() -> Path:
    """The published task files, where they are."""
    folder = Path(__file__).resolve().parents[2] / "../shared/data/gauntlet"
    if not folder.is_dir():
        pytest.skip("the published task data is not here")
    return folder.resolve()
