"""Text columns of parquet files and Arrow tables: the one place that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automodel_cli.corpus.readers import NOT_UTF8, text_of, usable_fields
from automodel_cli.corpus.units import BadRow, ReadOptions, Texts, Unit
from automodel_cli.errors import DataError

_CHOOSE = "choose one with --text-key (nanogpt) or --json-keys (megatron)"


@dataclass(frozen=True)
class RowGroup:
    """A parquet row group: its rows and the uncompressed bytes of the columns that are read."""

    rows: int
    text_bytes: int


def inspect_parquet(path: str, name: str, options: ReadOptions) -> list[RowGroup]:
    """The row groups of a file that has the text columns ``options.keys``.

    Raises:
        DataError: it is no parquet file, or lacks such a column.
    """
    with _readable(name), pq.ParquetFile(path) as file:
        check_columns(file.schema_arrow, options, name)
        leaves = [leaf for key in options.columns for leaf in _leaves(file, key)]
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        return [
            RowGroup(group.num_rows, sum(group.column(leaf).total_uncompressed_size for leaf in leaves))
            for group in groups
        ]


def _leaves(file: pq.ParquetFile, key: str) -> list[int]:
    """Parquet numbers leaf columns, so a struct before a text column shifts the count, and a list's leaf is inside."""
    paths = [file.metadata.schema.column(k).path for k in range(file.metadata.num_columns)]
    found = [k for k, path in enumerate(paths) if path == key or path.startswith(f"{key}.")]
    return found or [file.schema_arrow.get_field_index(key)]


def check_columns(schema: pa.Schema, options: ReadOptions, name: str) -> None:
    """Refuse a table that lacks a text column of ``options``, naming the columns it has."""
    for key in options.keys:
        if key not in schema.names:
            raise DataError(f"{name} has no column {key!r}; it has {schema.names}", _CHOOSE)
        kind = schema.field(key).type
        inner = kind.value_type if options.lists and _is_list(kind) else kind
        if not _is_text(inner):
            raise DataError(f"column {key!r} of {name} holds {kind}, not text", _CHOOSE)
    for key in options.carried:
        if key not in schema.names:
            raise DataError(f"{name} has no column {key!r}; it has {schema.names}", "leave it out")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def read_row_groups(unit: Unit, options: ReadOptions) -> pa.Table:
    """The columns of row groups ``start`` to ``stop`` of a unit's file, whole."""
    keys = list(options.columns)
    with _readable(unit.name), pq.ParquetFile(unit.path) as file:
        groups = list(range(unit.start, unit.stop))
        return file.read_row_groups(groups, columns=keys, use_threads=False).select(keys)


def iter_row_group(path: str, name: str, options: ReadOptions, group: int, rows: int) -> Iterator[pa.Table]:
    """The columns of one large row group, ``rows`` at a time."""
    keys = list(options.columns)
    with _readable(name), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=keys, use_threads=False):
            yield pa.Table.from_batches([batch]).select(keys)


class _readable:
    """Arrow's own errors about a file become ours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            message = f"cannot read {self.name}: {str(error).splitlines()[0][:200]}"
            raise DataError(message, "the file is damaged or no parquet file; copy it again") from error


def pack(table: pa.Table) -> bytes:
    """Columns as bytes, for the way to a worker."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def join(tables: list[pa.Table]) -> pa.Table:
    """Tables one after another."""
    return pa.concat_tables(tables)


def unpack(data: bytes) -> pa.Table:
    """The inverse of ``pack``."""
    return pa.ipc.open_stream(data).read_all()


def documents_of(table: pa.Table, options: ReadOptions) -> Texts:
    """The usable documents of a table and its bad rows; Arrow does not check that strings are UTF-8, we do."""
    if not options.lists:
        return texts_of(table.column(options.text_key))
    found = Texts([], rows=len(table))
    fields = [
        [value for chunk in table.column(key).chunks for value in _values(chunk)] for key in options.keys
    ]
    for row, values in enumerate(zip(*fields, strict=True)):
        decoded = tuple([_decoded_field(value) for value in values])
        bad = next((value for value in decoded if isinstance(value, BadRow)), None)
        found.add(row, bad or usable_fields(decoded, options.keys))
    return found


def _decoded_field(value: Any) -> Any:
    """Bytes as text, also inside a list; a BadRow where they are none."""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, list):
        texts = [_decoded_field(text) for text in value]
        return next((text for text in texts if isinstance(text, BadRow)), texts)
    return value


def texts_of(column: pa.ChunkedArray) -> Texts:
    """The usable texts of one column and its bad rows."""
    found = Texts([], rows=len(column))
    row = 0
    for chunk in column.chunks:
        for value in _values(chunk):
            found.add(row, _decoded(value) if isinstance(value, bytes) else text_of(value))
            row += 1
    return found


def _values(chunk: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    try:
        return chunk.to_pylist()
    except UnicodeDecodeError:
        return chunk.cast(_as_bytes(chunk.type)).to_pylist()


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type of the same values as bytes."""
    if _is_list(kind):
        inner = _as_bytes(kind.value_type)
        return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)
    return pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()


def _decoded(value: bytes) -> str | BadRow:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return BadRow(0, NOT_UTF8)


def carried_values(table: pa.Table, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """What each row has in the columns ``names``; strings that are not UTF-8 come as bytes."""
    columns = [[value for chunk in table.column(name).chunks for value in _values(chunk)] for name in names]
    return list(zip(*columns, strict=True))


def column_names(path: str, name: str) -> list[str]:
    """The columns of a parquet file."""
    with _readable(name), pq.ParquetFile(path) as file:
        return list(file.schema_arrow.names)
