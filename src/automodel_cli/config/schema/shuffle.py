"""Settings of `automodel preprocess shuffle`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from automodel_cli.config.schema.base import Amount, Count, LocalFolder, TypeName, Whole
from automodel_cli.config.schema.preprocess import MAX_DOCUMENT_BYTES, Fraction, TextInput
from automodel_cli.config.schema.runners import RUNNER_PANELS, RunnerOptions


def _split_names(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:  # --keep-columns id,url
        value = value[0]
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_split_names), TypeName("names, in a list or with commas between them")]


class ShuffleConfig(TextInput, RunnerOptions):
    """Documents in random order, with bounded memory; the order depends only on the seed and the input."""

    panels: ClassVar = {
        "Input": "dataset text_key document input_format max_document_bytes keep_columns dedup check strict",
        "Output": "output_dir name chunks chunk_size val_fraction val_documents seed overwrite dry_run",
        "Speed and memory": "memory temp_dir num_workers",
        **RUNNER_PANELS,
    }

    dataset: str = Field(validation_alias=AliasChoices("dataset", "input"))
    """File, folder or glob (.jsonl .parquet .txt ..., also .gz .bz2 .xz .zst), read in order of file name."""
    output_dir: str | None = None
    """Folder or URL to write to; null: `{dataset}_shuffled` in the current folder."""
    name: str | None = None
    """Prefix of the file names, `NAME.chunk.00000.jsonl` and `NAME.val.jsonl`; null: the dataset's name."""
    text_key: str = "text"
    """Field or column that holds the text; also its key in the output."""
    max_document_bytes: Amount = MAX_DOCUMENT_BYTES
    """Longer documents (bytes in their file) are skipped as bad rows; reading takes up to about twice this much
    memory."""
    keep_columns: Names | None = None
    """Columns of parquet files to keep besides the text, or `all`; rows of .jsonl files are always kept whole; null:
    none."""
    seed: Whole = 42
    """Seed of the order, and so of the choice of validation documents."""
    chunks: Count = 1
    """Number of training files, each with the same number of documents."""
    chunk_size: Amount | None = None
    """Maximum bytes per file, instead of a number of files; null: no limit."""
    val_fraction: Fraction | None = None
    """Fraction of the documents for `NAME.val.jsonl`; null: none."""
    val_documents: Count | None = None
    """Exact number of documents for `NAME.val.jsonl`, instead of a fraction; null: none."""
    dedup: bool = False
    """Drop documents whose text has already occurred, within and across splits."""
    check: bool = False
    """Parse every row and skip those without usable text (always done with `dedup`)."""
    strict: bool = False
    """Stop at the first bad row instead of skipping it."""
    memory: Amount = 500_000_000
    """Memory to use, in bytes; more means fewer, larger temporary files and the same result."""
    temp_dir: LocalFolder | None = None
    """Folder for temporary files, which take about as much space as the text, and for files on their way to a URL;
    null: the output folder, or one in the user's cache."""
    overwrite: bool = False
    """Replace the documents of an earlier run in the folder."""
    num_workers: Whole | None = None
    """Processes that read; 0 or 1: only this one; null: as many as pay off, up to one per core."""
    dry_run: bool = False
    """Show what would be done and exit."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ShuffleConfig:
        if self.val_fraction is not None and self.val_documents is not None:
            raise ValueError("`val_fraction` and `val_documents` exclude each other; give one")
        if self.chunks != 1 and self.chunk_size is not None:
            raise ValueError("`chunks` and `chunk_size` exclude each other; give one")
        if self.name is not None and ("/" in self.name or not self.name.strip(".")):
            raise ValueError("`name` is a prefix of file names and cannot contain folders")
        return self
