"""Settings of `automodel preprocess megatron`, by the names that Megatron's and NeMo's tools have."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from automodel_cli.config.schema.base import Amount, Count, LocalFolder, TypeName, Whole, ignored
from automodel_cli.config.schema.preprocess import Tokenization
from automodel_cli.config.schema.runners import FORECAST_PANELS, ForecastOptions


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1), TypeName("a text or a list of texts")]


class PreprocessMegatronConfig(Tokenization, ForecastOptions):
    """Text to Megatron-Core's indexed token files (.bin and .idx)."""

    panels: ClassVar = {
        "Input": "input dataset set_name split json_keys document input_format max_document_bytes strict",
        "Tokens": "tokenizer engine append_eod special_tokens add_special_tokens split_sentences keep_newlines lang "
        "skip_empty max_tokens",
        "Output": "output_prefix output_path temp_dir shards shard_tokens shuffle seed overwrite dry_run",
        "Speed and memory": "workers chunk_size prefetch shuffle_memory",
        **FORECAST_PANELS,
    }

    input: Texts | None = None
    """Files, folders or globs (.jsonl .json .parquet .txt ..., also .gz .bz2 .xz .zst), read in order of file name;
    null: the Hub dataset given as `dataset`."""
    dataset: str | None = None
    """Hub dataset to stream, instead of `input`; null: none."""
    json_keys: Texts = Field(default_factory=lambda: ["text"])
    """Fields or columns with text, or with lists of texts (sentences); each gets its own .bin and .idx."""
    tokenizer: str = Field(default="gpt2", validation_alias=AliasChoices("tokenizer", "pretrained_model_name_or_path"))
    """tiktoken name, Hugging Face id, folder with tokenizer.json, or `byte`."""
    append_eod: bool = False
    """Append the tokenizer's end-of-text token to each document that has any tokens."""
    special_tokens: Literal["text", "parse"] = "text"
    """Treat special tokens spelled out in documents (`<|endoftext|>`) as `text`, or `parse` them as Hugging Face
    does."""
    add_special_tokens: bool = True
    """Add the special tokens that the tokenizer itself puts around a text (Llama's `<s>`; GPT-2 has none)."""
    split_sentences: bool = False
    """Split texts into sentences with nltk; each becomes a sequence of its own, and file names end in `_sentence`."""
    keep_newlines: bool = False
    """With `split_sentences`: keep the white space between sentences."""
    lang: str = "english"
    """With `split_sentences`: the language of nltk's model."""
    skip_empty: bool = False
    """Drop documents without tokens (NeMo) instead of keeping an empty document for each (Megatron)."""
    max_tokens: Amount | None = None
    """Exact number of tokens of the first key to write, over all files; null: all."""
    shards: Count | None = None
    """Number of files per key, with about the same number of tokens each; null: one per input file."""
    shard_tokens: Amount | None = None
    """Maximum tokens of the first key per file, instead of one file per input file; null: no limit."""
    output_prefix: str = "processed_data"
    """Prefix of the file names, `PREFIX_N_KEY_document.bin` (and .idx)."""
    output_path: str | None = None
    """Folder or URL to write to; null: that of `output_prefix`."""
    temp_dir: LocalFolder | None = None
    """Folder for files on their way to a URL; null: in the user's cache. Not used for an output on a disk."""
    shuffle: bool = False
    """Write the documents in random order, into one file per key unless `shards` or `shard_tokens` say otherwise."""
    seed: Whole = 42
    """Seed of the order with `shuffle`: the same seed gives the order of `preprocess shuffle`."""
    overwrite: bool = False
    """First delete the files of an earlier run with this prefix."""
    workers: Whole | None = Field(default=None, validation_alias=AliasChoices("workers", "num_workers"))
    """Processes that tokenize; 0 or 1: only this one; null: as many as pay off, up to one per core (fewer for small
    inputs)."""

    # Keys of older files, without effect.
    log_interval: Whole | None = ignored(None, "progress is shown by time, not by documents")

    @model_validator(mode="after")
    def _options_that_go_together(self) -> PreprocessMegatronConfig:
        if (self.input is None) == (self.dataset is None):
            raise ValueError("give either `input` (files) or `dataset` (from the Hub)")
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
                "`json_keys` and the last part of `output_prefix` become file names: they need text, and no slash"
            )
        return self
