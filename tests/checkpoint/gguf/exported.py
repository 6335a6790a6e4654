"""Tiny models of every kind that goes into a GGUF file, their tokenizers, and the files."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import transformers
from tests.models import test_gpt

from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.config.schema.results import ExportGGUFConfig
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.models import hf
from automodel_cli.models.gpt import build_gpt_model
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.llama import build_llama_model
from automodel_cli.recipes import export_gguf

CONTEXT = 80
ROWS = 330  # a few more than the tokenizer has ids
GPT2 = {"vocab_size": ROWS, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LIKE_LLAMA = {**test_gpt.LLAMA, "init": "gpt2"}
LIKE_GPT2 = {**LLAMA, "preset": "gpt2", "num_key_value_heads": None}

KINDS = {
    "gpt2": lambda: build_gpt2_model(**GPT2),
    "gpt2 without biases": lambda: build_gpt2_model(**GPT2, bias=False),
    "gpt like gpt2": lambda: build_gpt_model(**LIKE_GPT2),
    "gpt like gpt2, untied, no biases": lambda: build_gpt_model(**LIKE_GPT2, tie_word_embeddings=False, bias=False),
    "llama": lambda: build_llama_model(**LLAMA),
    "llama tied, wide heads": lambda: build_llama_model(**LLAMA, tie_word_embeddings=True, head_dim=24),
    "llama 3.1": lambda: build_llama_model(**LLAMA, rope_scaling=LLAMA_3, rope_theta=5e5),
    "gpt like llama": lambda: build_gpt_model(**LLAMA, **LIKE_LLAMA),
    "gpt like llama, with biases": lambda: build_gpt_model(**LLAMA, **LIKE_LLAMA, bias=True),
    "transformers llama": lambda: hf.from_config(transformers.LlamaConfig(**LLAMA)),
    "mistral": lambda: hf.from_config(transformers.MistralConfig(**LLAMA, head_dim=16, sliding_window=None)),
    "qwen2": lambda: hf.from_config(transformers.Qwen2Config(**LLAMA)),
    "qwen3": lambda: hf.from_config(transformers.Qwen3Config(**LLAMA, head_dim=24, tie_word_embeddings=True)),
}


def model(kind: str) -> CausalLM:
    """With weights that leave no tensor without a say."""
    made = KINDS[kind]()
    made.materialize("cpu", 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return made.eval()


@functools.cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE as ``automodel preprocess tokenizer`` makes it."""
    return train_bpe(probe_texts(), 320)


def export(made: CausalLM, folder: Path, *, text: Tokenizer | None = None, **options: str) -> Path:
    """The file of a model in memory."""
    (text or tokenizer()).save(folder / "tokenizer")
    facts = {"model": made.model_config()}
    Checkpointer(folder / "run").save(
        3,
        model=made,
        optimizer=None,
        tokenizer_folder=folder / "tokenizer",
        state={},
        loader_state={},
        config_yaml="",
        facts=facts,
    )
    return file_of(folder / "run", folder / "out" / "model.gguf", **options)


def file_of(checkpoint: Path, output: Path, **options: str) -> Path:
    cfg = ExportGGUFConfig(checkpoint=str(checkpoint), output_file=str(output), **{"type": "f32", **options})
    return export_gguf.run(cfg).file
