"""Cuts Parquet files between row groups, and huge groups between rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from automodel_cli.corpus.documents import columns
from automodel_cli.corpus.documents.cutting.cut import Cut
from automodel_cli.corpus.documents.units import Unit, too_long

_BIG_ROW_GROUP = 8  # times the chunk: larger ones are read here and handed over in slices
# Of a row group that is sliced, on average; a few rows may be much longer than the others.
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 4096


def cut_parquet(cut: Cut, at: int, row: int) -> Iterator[Unit]:
    """Row groups from number ``at`` on, the first of them from ``row`` on; as many together as make a chunk of text."""
    file, options = cut.file, cut.options
    groups = columns.inspect_parquet(file.path, file.name, options)[: cut.stop]
    with columns.DictionaryProbe(file.path, file.name, options) as probe:
        while at < len(groups):
            longest = probe.longest(at, groups[at])
            if row or longest or groups[at].text_bytes > _BIG_ROW_GROUP * cut.chunk_bytes:
                yield from _slice_row_group(cut, at, row, groups[at], longest)
                at, row = at + 1, 0
                continue
            stop, size = at, 0
            while stop < len(groups) and (stop == at or size + groups[stop].text_bytes <= cut.chunk_bytes):
                if stop > at and probe.longest(stop, groups[stop]):
                    break
                size += groups[stop].text_bytes
                stop += 1
            rows = sum(group.rows for group in groups[at:stop])
            yield cut.unit("parquet", at, start=at, stop=stop, size=size, rows=rows)
            at = stop


def _slice_row_group(cut: Cut, at: int, row: int, group: columns.RowGroup, longest: int) -> Iterator[Unit]:
    """Some rows at a time, about a chunk of text; a long document is a unit of its own.

    ``longest``: bytes of a value that any number of rows may repeat, 0 where that cannot be much.
    """
    file, options = cut.file, cut.options
    rows = max(1, min(_BATCH_ROWS, group.rows * min(cut.chunk_bytes, _BATCH_BYTES) // max(1, group.text_bytes)))
    folded = longest > 0 and group.values > group.rows
    if longest:
        rows = max(1, min(rows, options.max_document_bytes // (4 * longest)))
    first = 0
    for table in columns.iter_row_group(file.path, file.name, options, at, rows, folded=folded):
        sizes = columns.row_bytes(table, options.keys)
        begin = max(0, row - first)
        while begin < len(table):
            ends = np.cumsum(sizes[begin:])
            stop = begin + max(1, int(np.searchsorted(ends, cut.chunk_bytes, side="right")))
            yield _rows_unit(cut, at, first + begin, table.slice(begin, stop - begin), int(ends[stop - begin - 1]))
            begin = stop
        first += len(table)


def _rows_unit(cut: Cut, at: int, row: int, table: Any, size: int) -> Unit:
    cursor, rows = {"row": row}, len(table)
    if rows == 1 and size > cut.max_bytes:
        return cut.unit("bad", at, cursor=cursor, payload=too_long(cut.max_bytes).reason, size=size, rows=1)
    payload = columns.pack(columns.unfolded(table))
    return cut.unit("rows", at, cursor=cursor, payload=payload, size=size, rows=rows, alone=cut.is_long(size))
