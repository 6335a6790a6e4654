"""Settings of `automodel preprocess nanogpt`, `preprocess tokenizer` and `preprocess verify`.

What several preprocessing commands take is declared once, in the classes that they share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from automodel_cli.config.schema.base import Amount, Count, JsonOutput, LocalFolder, Section, TypeName, Whole
from automodel_cli.config.schema.runners import FORECAST_PANELS, ForecastOptions

DEFAULT_DATASET = "HuggingFaceFW/fineweb"
DEFAULT_SET_NAME = "sample-10BT"
MAX_SHARD_TOKENS = 2**31 - 1

InputFormat = Literal["auto", "text", "jsonl", "json", "parquet"]
MAX_DOCUMENT_BYTES = 256 << 20
Fraction = Annotated[float, Field(gt=0, lt=1), TypeName("a number between 0 and 1")]


def unusual_reading(cfg: TextInput) -> dict[str, Any]:
    """How text is read, where that is not the default: a manifest made before there was a choice stays equal."""
    usual = {"input_format": "auto", "max_document_bytes": MAX_DOCUMENT_BYTES}
    return {name: getattr(cfg, name) for name in usual if getattr(cfg, name) != usual[name]}


class TextInput(Section):
    """Reading of documents from local files."""

    document: str = Field(default="file", min_length=1)
    r"""What counts as a document in text files: `file`, `line`, or the delimiter between documents (`\n\n`)."""
    input_format: InputFormat = "auto"
    """Format of local files, whatever their names; `auto`: by suffix. Compression is always detected from the
    content."""
    max_document_bytes: Amount = MAX_DOCUMENT_BYTES
    """Longer documents (bytes in their file) are split where that changes no token, otherwise skipped as bad rows;
    reading takes up to about twice this much memory."""


TextInputT = TypeVar("TextInputT", bound=TextInput)


def of_sample(cfg: TextInputT, sample: Path, folder: Path, **more: Any) -> TextInputT:
    """The options of a run in ``folder``, by this process, of rows that were taken from what ``cfg`` reads."""
    read = {"document": "file", "input_format": "auto", "keep_columns": None, "strict": False}
    place = {"dataset": str(sample), "output_dir": str(folder), "name": None, "temp_dir": None, "runner": "local"}
    return cfg.model_copy(update={**read, **place, **more})


class HubInput(TextInput):
    """Reading of documents from local files or a dataset of the Hugging Face Hub."""

    set_name: str | None = None
    """Configuration of a Hub dataset; null: the dataset's own default."""
    split: str = "train"
    """Split of a Hub dataset."""


class Tokenization(HubInput):
    """Text to token files, whatever their format."""

    strict: bool = False
    """Stop at the first bad row instead of skipping and counting it."""
    engine: Literal["auto", "reference", "fast"] = "auto"
    """Encoder to use: `auto` uses the fast engine if it is installed and agrees with the reference."""
    shuffle_memory: Amount = 500_000_000
    """Memory for `shuffle`, in bytes; more means fewer, larger temporary files and the same result."""
    chunk_size: Count = 256
    """Documents handed to a worker at a time (8 KiB each where a file is cut by bytes)."""
    prefetch: Count = 4
    """Chunks in flight per worker; limits memory use."""
    dry_run: bool = False
    """Show what would be done and exit."""


class PreprocessNanogptConfig(Tokenization, ForecastOptions):
    """Text to nanoGPT-style token files."""

    panels: ClassVar = {
        "Input": "dataset set_name split text_key document input_format max_document_bytes strict",
        "Tokens": "tokenizer engine eot separator max_tokens",
        "Output": "output_dir format val_fraction val_tokens shard_tokens shuffle seed temp_dir overwrite dry_run",
        "Speed and memory": "num_workers chunk_size prefetch shuffle_memory",
        **FORECAST_PANELS,
    }

    dataset: str = DEFAULT_DATASET
    """Hub dataset, or a local file, folder or glob (.jsonl .json .parquet .txt .md .py ..., also .gz .bz2 .xz .zst)."""
    set_name: str | None = None
    """Configuration of a Hub dataset; null: `sample-10BT` for the default dataset, else the dataset's own default."""
    text_key: str = "text"
    """Field or column that holds the text in .jsonl, .json, .parquet and Hub datasets."""
    max_tokens: Amount | None = None
    """Exact number of tokens to write, validation included (500M, 1.5B); null: all."""
    tokenizer: str = "gpt2"
    """tiktoken name, Hugging Face id, folder with tokenizer.json, `byte`, or `char` (vocabulary from the data)."""
    eot: Literal["prepend", "append", "none"] | None = None
    """Where the separator token of each document goes; null: `prepend` in bin, `append` in raw, `none` with char."""
    separator: Literal["eos", "bos"] | None = None
    """Which token separates documents, end- or beginning-of-text; null: `bos` where it goes before a document and the
    tokenizer has one of its own, as in NeMo's tool (GPT-2's two are one token), else `eos`."""
    val_fraction: Fraction | None = None
    """Fraction of the documents for val.bin (of a single document, and with char: the tail); null: none."""
    val_tokens: Amount | None = None
    """Number of tokens for val.bin, instead of a fraction; null: none."""
    shuffle: bool = False
    """Write documents in random order (needs temporary disk space for their text); `max_tokens` then takes a random
    sample of all documents."""
    seed: Whole = 42
    """Seed of the order with `shuffle`, and of the choice of validation documents."""
    format: Literal["bin", "raw"] = "bin"
    """`bin`: header and dataset.bin; `raw`: nanoGPT's headerless train.bin."""
    shard_tokens: Annotated[Amount, Field(le=MAX_SHARD_TOKENS)] = 1_000_000_000
    """Maximum number of tokens per file."""
    output_dir: str | None = None
    """Folder or URL (`s3://`, `gs://`, `az://`) to write to; null: `{dataset}_max_tokens_{N}` in the current folder."""
    temp_dir: LocalFolder | None = None
    """Folder for files on their way to a URL; null: in the user's cache. Not used for an output on a disk."""
    overwrite: bool = False
    """First delete what an earlier run wrote to the folder; other files in it are never touched."""
    num_workers: Whole | None = None
    """Processes that tokenize; 0 or 1: only this one; null: as many as pay off, up to one per core (fewer for small
    inputs)."""

    @model_validator(mode="after")
    def _one_validation_size(self) -> PreprocessNanogptConfig:
        if self.val_fraction is not None and self.val_tokens is not None:
            raise ValueError("`val_fraction` and `val_tokens` exclude each other; give one")
        if self.val_tokens and self.max_tokens and self.val_tokens >= self.max_tokens:
            raise ValueError(
                f"`val_tokens` ({self.val_tokens:,}) must be less than `max_tokens` ({self.max_tokens:,}), the total"
            )
        return self


class TokenizerTrainConfig(HubInput):
    """A byte-level BPE trained on one's own text."""

    panels: ClassVar = {
        "Input": "dataset set_name split text_key document input_format max_document_bytes max_bytes seed",
        "Output": "output_dir vocab_size overwrite",
    }

    dataset: str
    """Hub dataset, or a local file, folder or glob, as for `preprocess nanogpt`."""
    output_dir: str
    """Folder for tokenizer.json and its configuration, which AutoTokenizer loads."""
    vocab_size: Amount = 32_768
    """Size of the vocabulary, including end-of-text and the 256 bytes."""
    text_key: str = "text"
    """Field or column that holds the text."""
    max_bytes: Amount | None = 1_000_000_000
    """Bytes of text to train on; of a larger input, a random sample of documents is used (by `seed`); null: all."""
    seed: Whole = 42
    """Seed of that sample."""
    overwrite: bool = False
    """Replace the tokenizer that is in the folder."""


class VerifyConfig(JsonOutput):
    """A corpus folder or token files to check."""

    path: str
    """Corpus folder, its manifest, a token file (ours, NeMo's, nanoGPT's), or the prefix of a .bin and .idx pair; or
    the URL of a folder or manifest, whose objects are then hashed."""
    tokenizer: str | None = None
    """Tokenizer to check and decode with if there is no manifest; null: tokens are not decoded."""
    raw_dtype: Literal["uint16", "uint32", "npy"] | None = None
    """Type of the tokens in a file without a header (npy: a NumPy file of ids); null: uint16."""
    documents: Whole = 2
    """Number of documents to show, decoded, from the start of each split."""
