"""Settings of `automodel preprocess megatron`, by the names that Megatron's and NeMo's tools have."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from automodel_cli.config.schema.base import Count, TypeName, Whole, ignored
from automodel_cli.config.schema.preprocess import Amount, Tokenization


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[
    list[str], BeforeValidator(_as_list), Field(min_length=1), TypeName("a text or a list of texts")
]


class PreprocessMegatronConfig(Tokenization):
    """Text to Megatron-Core's indexed token files (.bin and .idx)."""

    panels: ClassVar = {
        "Input": "input dataset set_name split json_keys document input_format max_document_bytes strict",
        "Tokens": "tokenizer engine append_eod special_tokens add_special_tokens split_sentences keep_newlines lang "
        "skip_empty max_tokens",
        "Output": "output_prefix output_path shards shard_tokens shuffle seed overwrite dry_run",
        "Speed and memory": "workers chunk_size prefetch shuffle_memory",
    }

    input: Texts | None = None
    """Files, folders or globs (.jsonl .json .parquet .txt ..., also .gz .bz2 .xz .zst), read in order of names;
    null: those of `dataset`."""
    dataset: str | None = None
    """Hub dataset to stream, instead of `input`; null: none."""
    json_keys: Texts = Field(default_factory=lambda: ["text"])
    """Fields or columns with text, or with lists of texts (sentences); each gets its own .bin and .idx."""
    tokenizer: str = Field(
        default="gpt2", validation_alias=AliasChoices("tokenizer", "pretrained_model_name_or_path")
    )
    """tiktoken name, Hugging Face id, folder with tokenizer.json, or `byte`."""
    append_eod: bool = False
    """Put the tokenizer's end-of-text id after each document that has any tokens."""
    special_tokens: Literal["text", "parse"] = "text"
    """Special tokens spelled out in documents (`<|endoftext|>`) are `text`, or are `parse`d as Hugging Face does."""
    add_special_tokens: bool = True
    """Put the special tokens around each text that the tokenizer itself puts there (Llama's `<s>`; GPT-2 has none)."""
    split_sentences: bool = False
    """Cut texts into sentences with nltk; each is a sequence of its own, and names end in `_sentence`."""
    keep_newlines: bool = False
    """With `split_sentences`: keep the white space between sentences."""
    lang: str = "english"
    """With `split_sentences`: the language of nltk's model."""
    skip_empty: bool = False
    """Drop documents without tokens (NeMo) instead of keeping an empty document for each (Megatron)."""
    max_tokens: Amount | None = None
    """Tokens of the first key to write, exactly, over all files; null: all."""
    shards: Count | None = None
    """Files per key, with about as many tokens each; null: one for each input file."""
    shard_tokens: Amount | None = None
    """Maximum tokens of the first key in a file, instead of one file for each input file; null: no limit."""
    output_prefix: str = "processed_data"
    """Beginning of the file names, `PREFIX_N_KEY_document.bin` (and .idx)."""
    output_path: str | None = None
    """Folder to write; null: that of `output_prefix`."""
    shuffle: bool = False
    """Write the documents in random order, into one file per key unless `shards` or `shard_tokens` say otherwise."""
    seed: Whole = 42
    """Decides the order with `shuffle`, which is that of `preprocess shuffle` with the same seed."""
    overwrite: bool = False
    """First delete the files of an earlier run with this prefix."""
    workers: Whole | None = Field(default=None, validation_alias=AliasChoices("workers", "num_workers"))
    """Processes that tokenize; 0 or 1: only this one; null: as many as pay off, at most one
    per core (fewer for small inputs)."""

    # Keys of older files, without effect.
    log_interval: Whole | None = ignored(None, "progress is shown by time, not by documents")

    @model_validator(mode="after")
    def _options_that_go_together(self) -> PreprocessMegatronConfig:
        if (self.input is None) == (self.dataset is None):
            raise ValueError("give `input` (files) or `dataset` (of the Hub), one of the two")
        if self.shards and self.shard_tokens:
            raise ValueError("`shards` and `shard_tokens` exclude each other; give one")
        if self.shuffle and self.input is None:
            raise ValueError("`shuffle` needs `input` (files): download the dataset first")
        if self.keep_newlines and not self.split_sentences:
            raise ValueError("`keep_newlines` needs `split_sentences`")
        if len(set(self.json_keys)) < len(self.json_keys):
            raise ValueError("`json_keys` names a key twice")
        odd = [key for key in self.json_keys if not re.fullmatch(r"[^/\0]+", key)]
        if odd or not re.fullmatch(r"(.*/)?[^/\0]+", self.output_prefix):
            raise ValueError(
                "`json_keys` and the last part of `output_prefix` become file names: no slash, not empty"
            )
        return self
