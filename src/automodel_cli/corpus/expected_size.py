"""How many bytes of rows a set of files will give, before any of them is read: for disk space, buckets and progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from automodel_cli.corpus.compressed import expansion
from automodel_cli.corpus.listing import SourceFile
from automodel_cli.corpus.units import ReadOptions

_SAMPLE_BYTES = 1 << 20  # of a compressed file, from its beginning
_RENDERED = 1.05  # text as a JSON string, with its key
_UNKNOWN_RATIO = 4.0


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
        if file.compression and ratio is None:
            ratio = expansion_of(file)  # of the first one; the others are of its kind
        rendered = 1.0 if file.kind == "jsonl" else _RENDERED
        total += file.bytes * (ratio or 1.0 if file.compression else 1.0) * rendered
    exact = all(file.kind == "jsonl" and not file.compression for file in files)
    return ExpectedSize(int(total), exact)


def _parquet_bytes(file: SourceFile, options: ReadOptions) -> int:
    from automodel_cli.corpus import columns  # pyarrow.parquet, which other files do not need

    return sum(group.text_bytes for group in columns.inspect_parquet(file.path, file.name, options))


def expansion_of(file: SourceFile) -> float:
    """Bytes that a compressed byte stands for, from the beginning of the file."""
    return expansion(file.path, file.name, file.compression, _SAMPLE_BYTES) or _UNKNOWN_RATIO
