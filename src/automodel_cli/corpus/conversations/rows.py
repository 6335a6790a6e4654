"""Rows of data sets as they are, for tasks: of local JSON lines, JSON and Parquet files, or of the Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np

from automodel_cli.corpus.documents.compressed import open_stream, stream_errors
from automodel_cli.corpus.documents.inputs import arrow_input
from automodel_cli.corpus.documents.json_values import iter_json
from automodel_cli.corpus.documents.listing import SourceFile, is_local
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import MAX_DOCUMENT_BYTES, BadRow, ReadOptions, too_long
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes

_BATCH_ROWS = 256
NumberedRow = tuple[str, int, Any]  # name of the file, number of the row in it, a mapping or a line of JSON


class RowSource(Protocol):
    """One split of a data set."""

    def __len__(self) -> int:
        """Rows in all, bad ones too."""

    def rows(self, chosen: np.ndarray) -> Iterator[NumberedRow]:
        """Those that are ``chosen`` (bool, one for each row), in order."""

    def describe(self) -> dict[str, Any]:
        """Where it is from, for a manifest."""

    def identity(self) -> str:
        """Hash of what an interrupted run must find again."""


def open_rows(dataset: str, set_name: str | None, split: str) -> RowSource:
    """The rows of local files (a file, folder or glob), or of a split of a data set of the Hub.

    Raises:
        DataError: there is no such thing.
    """
    return FileRows(dataset) if is_local(dataset) else HubRows(dataset, set_name, split)


class FileRows:
    """Rows of files; blank lines are none."""

    def __init__(self, dataset: str) -> None:
        self._source = FileSource(dataset, ReadOptions())
        self.describe, self.identity = self._source.describe, self._source.identity
        for file in self._source.files:
            if file.kind == "text" or file.not_text:
                raise DataError(
                    f"{file.name} holds no rows", "conversations are read from .jsonl, .json and .parquet files"
                )
        self._counts = [_count(file) for file in self._source.files]

    def __len__(self) -> int:
        return sum(self._counts)

    def rows(self, chosen: np.ndarray) -> Iterator[NumberedRow]:
        first = 0
        for file, count in zip(self._source.files, self._counts, strict=True):
            wanted = chosen[first : first + count]
            yield from ((file.name, n, value) for n, value in enumerate(_values(file)) if wanted[n])
            first += count


def _count(file: SourceFile) -> int:
    if file.kind == "parquet":
        with _parquet(file) as opened:
            return int(opened.metadata.num_rows)
    return sum(1 for _ in _values(file))


def _values(file: SourceFile) -> Iterator[Any]:
    """Lines that are not blank, or values.

    Raises:
        DataError: the file is damaged.
    """
    if file.kind == "parquet":
        with _parquet(file) as opened:
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
        return
    with stream_errors(file.name), open_stream(file.path, file.compression) as stream:
        if file.kind == "jsonl":
            yield from _lines(stream)
        else:
            yield from (value for value, _ in iter_json(stream, file.name, MAX_DOCUMENT_BYTES))


def _lines(stream: IO[bytes]) -> Iterator[bytes | BadRow]:
    """Lines that are not blank; of one that is too long no more is held than what is allowed."""
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        if len(line) > MAX_DOCUMENT_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_DOCUMENT_BYTES)
            yield too_long(MAX_DOCUMENT_BYTES)
        elif not line.isspace():
            yield line


@contextlib.contextmanager
def _parquet(file: SourceFile) -> Iterator[Any]:
    import pyarrow.parquet as pq  # a quarter second that JSON does not pay

    from automodel_cli.corpus.documents.columns import readable

    with readable(file.name), pq.ParquetFile(arrow_input(file.path)) as opened:
        yield opened


class HubRows:
    """Rows of one split of a data set of the Hub, or of a folder that ``datasets`` opens; kept in its cache."""

    def __init__(self, dataset: str, set_name: str | None, split: str) -> None:
        from automodel_cli.corpus.documents.hub import load_split

        self._name = dataset
        self._described = {"kind": "hub", "name": dataset, "set_name": set_name, "split": split}
        hint = "check its name, set_name and split and the network, or give local files with the same columns"
        self._rows = load_split(dataset, set_name, split, streaming=False, hint=hint)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, chosen: np.ndarray) -> Iterator[NumberedRow]:
        numbers = np.flatnonzero(chosen)
        picked = self._rows.select(numbers).with_format("arrow").iter(batch_size=_BATCH_ROWS)
        rows = (row for table in picked for row in table.to_pylist())
        return ((self._name, number, row) for number, row in zip(numbers.tolist(), rows, strict=True))

    def describe(self) -> dict[str, Any]:
        return self._described

    def identity(self) -> str:
        return hash_bytes(repr((self._described, len(self))).encode())
