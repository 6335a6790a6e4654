"""How many bytes of rows files will give, before any is read; how much disk a run needs, and whether it is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.corpus.documents.compressed import likely_expansion
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.source import FileSource, Source
from automodel_cli.corpus.documents.units import ReadOptions, TokenChunk, Unit
from automodel_cli.corpus.tokenizers.engines import EngineMismatch
from automodel_cli.errors import AutomodelError
from automodel_cli.text import binary_size

_RENDERED = 1.05  # text as a JSON string, with its key
_SAMPLE_DOCUMENTS = 16
_SAMPLE_BYTES = 1 << 20  # units beyond that are not tokenized for an estimate
_BYTES_A_TOKEN = 4  # of text, where there is no sample
_BYTES_A_SEQUENCE = 20  # length, pointer and document of the index
_DOCUMENT_BYTES = 4000  # of text, likewise


@dataclass(frozen=True)
class ExpectedSize:
    """Bytes of rows; ``exact`` where no estimate is in it."""

    bytes: int
    exact: bool


def expected_size(files: Sequence[SourceFile], options: ReadOptions) -> ExpectedSize:
    """The size of all rows of ``files``.

    Raises:
        DataError: a file cannot be read, or has no such column.
    """
    total, ratio = 0.0, None
    for file in files:
        if file.kind == "parquet":
            total += _RENDERED * _parquet_bytes(file, options)
            continue
        if file.compression and ratio is None:  # of the first one; the others are of its kind
            ratio = likely_expansion(file.path, file.name, file.compression)
        rendered = 1.0 if file.kind == "jsonl" else _RENDERED
        total += file.bytes * (ratio or 1.0 if file.compression else 1.0) * rendered
    exact = all(file.kind == "jsonl" and not file.compression for file in files)
    return ExpectedSize(int(total), exact)


def _parquet_bytes(file: SourceFile, options: ReadOptions) -> int:
    from automodel_cli.corpus.documents import columns  # pyarrow.parquet, which other files do not need

    return sum(group.text_bytes for group in columns.inspect_parquet(file.path, file.name, options))


@dataclass(frozen=True)
class Estimate:
    """Bytes that all files will have, and the tokens in them."""

    bytes: int
    tokens: int


@dataclass(frozen=True)
class Ratios:
    """What text becomes: tokens per byte of input, sequences per token."""

    tokens_a_byte: float
    sequences_a_token: float


def estimate(
    source: Source,
    encoder: Callable[[Unit], TokenChunk],
    *,
    itemsize: int,
    max_tokens: int | None,
    copies: int = 1,
    keeps_text: bool = False,
    ratios: Ratios | None = None,
) -> Estimate | None:
    """From a small sample of the text; None where nobody knows how much there is (a Hub stream without limit).

    Args:
        max_tokens: the most that will be written.
        copies: how many times all tokens are on the disk at once.
        keeps_text: whether the text is there once more, too (for a shuffle).
        ratios: of a better sample, where there is one.
    """
    text_bytes = None
    if isinstance(source, FileSource):
        text_bytes = expected_size(source.files, source.options).bytes
    if text_bytes is None and max_tokens is None:
        return None
    ratios = ratios or _sample(source, encoder)
    known = [max_tokens, None if text_bytes is None else int(text_bytes * ratios.tokens_a_byte)]
    tokens = min(amount for amount in known if amount is not None)
    token_bytes = copies * tokens * (itemsize + _BYTES_A_SEQUENCE * ratios.sequences_a_token)
    return Estimate(int(token_bytes) + (text_bytes if keeps_text and text_bytes else 0), tokens)


def _sample(source: Source, encoder: Callable[[Unit], TokenChunk]) -> Ratios:
    """Of the first little unit of a local source."""
    usual = Ratios(1 / _BYTES_A_TOKEN, _BYTES_A_TOKEN / _DOCUMENT_BYTES)
    if not isinstance(source, FileSource):
        return usual
    unit = next(source.units(None, _SAMPLE_DOCUMENTS), None)
    if unit is None or not 0 < unit.size <= _SAMPLE_BYTES:
        return usual
    try:
        chunk = encoder(unit)
    except EngineMismatch:  # the run finds it too, and knows what to do
        return usual
    if len(chunk.tokens) == 0:
        return usual
    sequences = sum(len(field.lengths) for field in chunk.fields)
    return Ratios(len(chunk.tokens) / unit.size, sequences / len(chunk.tokens))


def free_bytes(folder: Path) -> int:
    """What is free on the disk that ``folder`` is, or will be, on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(folder: Path, needed: Estimate | None, option: str = "--output-path") -> str | None:
    """A warning if the disk may become full; ``option`` chooses the place.

    Raises:
        AutomodelError: it certainly will: not even half of the estimate is free.
    """
    if needed is None:
        return None
    free = free_bytes(folder)
    if free >= needed.bytes:
        return None
    line = f"{folder} has {binary_size(free)} free, about {binary_size(needed.bytes)} will be written"
    if free < needed.bytes // 2:
        raise AutomodelError(line, f"free some space, use another {option}, or write less with --max-tokens")
    return f"{line}: the disk may become full (the same command goes on from there)"
