"""Text columns of parquet files and Arrow tables: the one place that imports pyarrow.

A dictionary page holds a value once that any number of rows may repeat, so a few MB may stand for any amount of text.
Where that can be, only so many rows are read at a time that all of them may hold the longest value; lists, of which
one row may repeat it any number of times, are read as dictionaries and unfolded afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from automodel_cli.corpus.documents.inputs import arrow_input
from automodel_cli.corpus.documents.units import (
    NOT_UTF8,
    BadRow,
    ReadOptions,
    Texts,
    Unit,
    text_of,
    too_long,
    usable_fields,
)
from automodel_cli.errors import DataError
from automodel_cli.text import first_line

_READ_BYTES = 1 << 20  # Arrow's default reads the column of a whole group before its first row
_CHOOSE = "choose one with --text-key (nanogpt) or --json-keys (megatron)"


@dataclass(frozen=True)
class RowGroup:
    """A parquet row group.

    Attributes:
        rows: its rows.
        text_bytes: uncompressed bytes of the columns that are read.
        has_dictionary: one of them has a dictionary page.
        values: the most values that one of them holds; more than ``rows`` in a column of lists.
    """

    rows: int
    text_bytes: int
    has_dictionary: bool = False
    values: int = 0


def inspect_parquet(path: str, name: str, options: ReadOptions) -> list[RowGroup]:
    """The row groups of a file that has the text columns ``options.keys``.

    Raises:
        DataError: it is no parquet file, or lacks such a column.
    """
    with readable(name), pq.ParquetFile(arrow_input(path)) as file:
        check_columns(file.schema_arrow, options, name)
        leaves = [leaf for key in options.columns for leaf in _leaves(file, key)]
        found = []
        for k in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(k)
            chunks = [group.column(leaf) for leaf in leaves]
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            has_dictionary = any(chunk.has_dictionary_page for chunk in chunks)
            values = max(chunk.num_values for chunk in chunks)
            found.append(RowGroup(group.num_rows, size, has_dictionary, values))
        return found


class DictionaryProbe:
    """Looks at the dictionaries of a file's row groups; the file is opened when the first one has to be."""

    def __init__(self, path: str, name: str, options: ReadOptions) -> None:
        self._path, self._name, self._options = path, name, options
        self._file: pq.ParquetFile | None = None

    def longest(self, number: int, group: RowGroup) -> int:
        """Bytes of the longest value in the dictionaries of a group that may hold more text than a document; else 0."""
        most = self._options.max_document_bytes
        if not group.has_dictionary or group.values * group.text_bytes <= most:
            return 0
        keys = list(self._options.columns)
        with readable(self._name):
            if self._file is None:
                self._file = _open_folded(self._path, keys)
            first = next(self._file.iter_batches(1, row_groups=[number], columns=keys, use_threads=False))
            longest = sum(_longest(column) for column in first.columns)
        return longest if group.values * longest > most else 0

    def __enter__(self) -> DictionaryProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _open_folded(path: str, keys: list[str]) -> pq.ParquetFile:
    """A file whose text columns come as dictionaries, read page by page."""
    with pq.ParquetFile(arrow_input(path)) as file:
        names = [file.metadata.schema.column(k) for k in range(file.metadata.num_columns)]
        leaves = [
            leaf.path
            for leaf in names
            if leaf.physical_type == "BYTE_ARRAY" and (leaf.path in keys or leaf.path.partition(".")[0] in keys)
        ]
    return pq.ParquetFile(arrow_input(path), read_dictionary=leaves, pre_buffer=False, buffer_size=_READ_BYTES)


def _open_plain(path: str) -> pq.ParquetFile:
    """A file that is read page by page."""
    return pq.ParquetFile(arrow_input(path), pre_buffer=False, buffer_size=_READ_BYTES)


def _longest(column: pa.Array) -> int:
    """Bytes of the longest value that a column of dictionaries can take."""
    if _is_list(column.type):
        column = column.values
    lengths = _lengths(column.dictionary if pa.types.is_dictionary(column.type) else column)
    return int(lengths.max(initial=0))


def row_bytes(table: pa.Table, keys: tuple[str, ...]) -> np.ndarray:
    """Bytes of text that each row has in the columns ``keys``, unfolded; int64."""
    sizes = np.zeros(len(table), dtype=np.int64)
    for key in keys:
        sizes += np.concatenate([_lengths(chunk) for chunk in table.column(key).chunks] or [sizes])
    return sizes


def _lengths(array: pa.Array) -> np.ndarray:
    kind = array.type
    if _is_list(kind):
        inner, parents = (
            _lengths(array.flatten()),
            pc.list_parent_indices(array).to_numpy(zero_copy_only=False),
        )
        return np.bincount(parents, weights=inner, minlength=len(array)).astype(np.int64)
    if pa.types.is_dictionary(kind):
        known = np.append(_lengths(array.dictionary), 0)  # the last is for null
        return known[pc.fill_null(array.indices.cast(pa.int64()), len(known) - 1).to_numpy()]
    if not _is_text(kind) or pa.types.is_null(kind):
        return np.zeros(len(array), dtype=np.int64)
    lengths = pc.binary_length(array.cast(pa.large_binary()) if _is_view(kind) else array)
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _leaves(file: pq.ParquetFile, key: str) -> list[int]:
    """Parquet numbers leaf columns, so a struct before a text column shifts the count, and a list's leaf is inside."""
    paths = [file.metadata.schema.column(k).path for k in range(file.metadata.num_columns)]
    found = [k for k, path in enumerate(paths) if path == key or path.startswith(f"{key}.")]
    return found or [file.schema_arrow.get_field_index(key)]


def check_columns(schema: pa.Schema, options: ReadOptions, name: str) -> None:
    """Refuse a table that lacks a text column of ``options``, naming the columns it has."""
    for key in (*options.keys, *options.carried):
        if (times := schema.names.count(key)) > 1:
            raise DataError(
                f"{name} has {times} columns named {key!r}: it is not clear which one is meant",
                "write it again with different names",
            )
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
    """Strings and bytes of any width; also a column that holds nothing but null, which has no text to be wrong."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return strings or binary or pa.types.is_null(kind)


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)


def read_row_groups(unit: Unit, options: ReadOptions) -> pa.Table:
    """The columns of row groups ``start`` to ``stop`` of a unit's file, whole."""
    keys = list(options.columns)
    with readable(unit.name), pq.ParquetFile(arrow_input(unit.path)) as file:
        groups = list(range(unit.start, unit.stop))
        return file.read_row_groups(groups, columns=keys, use_threads=False).select(keys)


def iter_row_group(
    path: str, name: str, options: ReadOptions, group: int, rows: int, *, folded: bool = False
) -> Iterator[pa.Table]:
    """The columns of one large row group, ``rows`` at a time; ``folded``: as dictionaries."""
    keys = list(options.columns)
    with (
        readable(name),
        _open_folded(path, keys) if folded else _open_plain(path) as file,
    ):
        for batch in file.iter_batches(rows, row_groups=[group], columns=keys, use_threads=False):
            yield pa.Table.from_batches([batch]).select(keys)


def unfolded(table: pa.Table) -> pa.Table:
    """``table`` with values where it has dictionaries."""
    columns = [pa.chunked_array([_unfolded(chunk) for chunk in column.chunks]) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _unfolded(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if _is_list(array.type) and pa.types.is_dictionary(array.type.value_type):
        kind = pa.LargeListArray if pa.types.is_large_list(array.type) else pa.ListArray
        start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()
        values = array.values.slice(start, stop - start).dictionary_decode()
        mask = array.is_null() if array.null_count else None
        return kind.from_arrays(pc.subtract(array.offsets, array.offsets[0]), values, mask=mask)
    return array


class readable:
    """Arrow's own errors about a file become ours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError | ValueError | OverflowError):
            message = f"cannot read {self.name}: {first_line(error)}"
            raise DataError(message, "the file is damaged or not a parquet file; copy it again") from error


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
    most = options.max_document_bytes
    long = row_bytes(table, options.keys) > most if table.nbytes > most else np.zeros(len(table), dtype=bool)
    found = Texts([], rows=len(table))
    if not options.lists:
        chunks = table.column(options.text_key).chunks
        for row, value in enumerate(value for chunk in chunks for value in _values(chunk)):
            text = _decoded(value) if isinstance(value, bytes) else text_of(value)
            found.add(row, too_long(most) if long[row] else text)
        return found
    fields = [[value for chunk in table.column(key).chunks for value in _values(chunk)] for key in options.keys]
    for row, values in enumerate(zip(*fields, strict=True)):
        decoded = tuple([_decoded_field(value) for value in values])
        bad = next((value for value in decoded if isinstance(value, BadRow)), None)
        found.add(row, too_long(most) if long[row] else bad or usable_fields(decoded, options.keys))
    return found


def _decoded_field(value: Any) -> Any:
    """Bytes as text, also inside a list; a BadRow where they are none."""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, list):
        texts = [_decoded_field(text) for text in value]
        return next((text for text in texts if isinstance(text, BadRow)), texts)
    return value


def _values(chunk: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(chunk.type):  # each value once, however often it comes
        known = [*_values(chunk.dictionary), None]
        return [known[-1 if index is None else index] for index in chunk.indices.to_pylist()]
    try:
        return chunk.to_pylist()
    except UnicodeDecodeError:
        return chunk.cast(_as_bytes(chunk.type)).to_pylist()


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type of the same values as bytes."""
    if _is_list(kind):
        inner = _as_bytes(kind.value_type)
        return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)
    if _is_view(kind):
        return pa.binary_view()
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
    with readable(name), pq.ParquetFile(arrow_input(path)) as file:
        return list(file.schema_arrow.names)
