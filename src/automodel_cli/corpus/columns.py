"""Text columns of parquet files and Arrow tables: the one place that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from automodel_cli.corpus.readers import NOT_UTF8, text_of
from automodel_cli.corpus.units import BadRow, Texts, Unit
from automodel_cli.errors import DataError


@dataclass(frozen=True)
class RowGroup:
    """A parquet row group: its rows and the uncompressed bytes of the text column."""

    rows: int
    text_bytes: int


def inspect_parquet(path: str, name: str, text_key: str) -> list[RowGroup]:
    """The row groups of a file that has a text column ``text_key``.

    Raises:
        DataError: it is no parquet file, or has no such column.
    """
    with _readable(name), pq.ParquetFile(path) as file:
        check_column(file.schema_arrow, text_key, name)
        column = file.schema_arrow.get_field_index(text_key)
        column = _leaf_index(file.metadata, text_key, column)
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        return [RowGroup(g.num_rows, g.column(column).total_uncompressed_size) for g in groups]


def _leaf_index(metadata: pq.FileMetaData, text_key: str, fallback: int) -> int:
    """Parquet numbers leaf columns, so a struct before the text column shifts the count."""
    names = [metadata.schema.column(k).path for k in range(metadata.num_columns)]
    return names.index(text_key) if text_key in names else fallback


def check_column(schema: pa.Schema, text_key: str, name: str) -> None:
    """Refuse a table without a text column ``text_key``, naming the columns it has."""
    if text_key not in schema.names:
        raise DataError(
            f"{name} has no column {text_key!r}; it has {schema.names}", "choose one with --text-key"
        )
    kind = schema.field(text_key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
        raise DataError(f"column {text_key!r} of {name} holds {kind}, not text", "choose one with --text-key")


def read_row_groups(unit: Unit, text_key: str) -> pa.ChunkedArray:
    """The text column of row groups ``start`` to ``stop`` of a unit's file, whole."""
    with _readable(unit.name), pq.ParquetFile(unit.path) as file:
        groups = list(range(unit.start, unit.stop))
        return file.read_row_groups(groups, columns=[text_key], use_threads=False).column(text_key)


def iter_row_group(path: str, name: str, text_key: str, group: int, rows: int) -> Iterator[pa.ChunkedArray]:
    """The text column of one large row group, ``rows`` at a time."""
    with _readable(name), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[text_key], use_threads=False):
            yield pa.chunked_array([batch.column(0)])


class _readable:
    """Arrow's own errors about a file become ours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            message = f"cannot read {self.name}: {str(error).splitlines()[0][:200]}"
            raise DataError(message, "the file is damaged or no parquet file; copy it again") from error


def pack(column: pa.ChunkedArray | pa.Array) -> bytes:
    """A column as bytes, for the way to a worker."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    table = pa.table({"text": chunked})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def join(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Columns one after another."""
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks])


def unpack(data: bytes) -> pa.ChunkedArray:
    """The inverse of ``pack``."""
    return pa.ipc.open_stream(data).read_all().column(0)


def texts_of(column: pa.ChunkedArray) -> Texts:
    """The usable texts of a column and its bad rows; Arrow does not check that strings are UTF-8, we do."""
    found = Texts([], rows=len(column))
    row = 0
    for chunk in column.chunks:
        for value in _values(chunk):
            found.add(row, _decoded(value) if isinstance(value, bytes) else text_of(value))
            row += 1
    return found


def _values(chunk: pa.Array) -> list[str | bytes | None]:
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    try:
        return chunk.to_pylist()
    except UnicodeDecodeError:
        large = pa.types.is_large_string(chunk.type)
        return chunk.view(pa.large_binary() if large else pa.binary()).to_pylist()


def _decoded(value: bytes) -> str | BadRow:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return BadRow(0, NOT_UTF8)
