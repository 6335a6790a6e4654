"""Cuts files into units at document borders. The borders move with the chunk size, the documents do not.

| what                          | where it is cut                                   | who reads the bytes          |
|-------------------------------|---------------------------------------------------|------------------------------|
| .jsonl, text by line          | after a line end                                  | worker (range)               |
| text by delimiter             | after a delimiter, scanned from the start         | worker (range)               |
| text, a document a file       | between files; a huge one between letter and space| worker                       |
| .parquet                      | between row groups                                | worker                       |
| .parquet, huge row groups     | every so many rows                                | parent, hands over           |
| .json (array or objects)      | between values                                    | parent, hands over           |
| anything compressed           | as above                                          | parent, hands over           |

A document much longer than a unit is a unit of its own (``Unit.alone``); one longer than ``max_document_bytes`` is
found by its borders, passed over without being held, and stands as a bad row in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from automodel_cli.corpus.documents.cutting.cut import Cut
from automodel_cli.corpus.documents.cutting.json_files import cut_json_values, is_json_lines
from automodel_cli.corpus.documents.cutting.rows import cut_delimited, cut_lines
from automodel_cli.corpus.documents.cutting.texts import cut_text
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.units import ReadOptions, Unit

_MAX_FILES_A_UNIT = 4096


def cut_files(
    files: Sequence[SourceFile],
    options: ReadOptions,
    cursor: dict[str, Any],
    *,
    chunk_bytes: int,
    cut_huge_texts: bool,
    tail_from: int | None,
    stop_at: int | None = None,
) -> Iterator[Unit]:
    """The units of ``files`` from ``cursor`` (``{"file": number, "at": position in it}``) on.

    Args:
        stop_at: where to stop in the last of ``files``: after a line end (bytes), or a row group (their number).

    Raises:
        DataError: a file cannot be read to its end.
    """
    index, at, row = cursor["file"], cursor["at"], cursor.get("row", 0)
    while index < len(files):
        cut = Cut(files[index], index, options, chunk_bytes, stop_at if index == len(files) - 1 else None)
        group = [] if at or tail_from is not None else small_group(files, index, options, chunk_bytes)
        if group:
            paths = [(file.path, file.name) for file in group]
            yield cut.unit("files", 0, payload=paths, size=sum(file.bytes for file in group))
            index += len(group)
            continue
        yield from _cut_one(cut, at, row, cut_huge_texts, tail_from)
        index, at, row = index + 1, 0, 0


def small_group(files: Sequence[SourceFile], first: int, options: ReadOptions, chunk_bytes: int) -> list[SourceFile]:
    """The files from number ``first`` on that make one unit: each of them one document, and not a large one."""
    largest = min(2 * chunk_bytes, options.max_document_bytes)

    def is_small(file: SourceFile) -> bool:
        whole = file.kind == "text" and options.document == "file" and not file.compression
        return whole and file.bytes <= largest and not file.not_text

    group: list[SourceFile] = []
    size = 0
    for file in files[first : first + _MAX_FILES_A_UNIT]:
        if not is_small(file) or (group and size + file.bytes > chunk_bytes):
            break
        group.append(file)
        size += file.bytes
    return group


def _cut_one(cut: Cut, at: int, row: int, cut_huge_texts: bool, tail_from: int | None) -> Iterator[Unit]:
    file, document = cut.file, cut.options.document
    if file.not_text:
        return iter([cut.unit("bad", 0, payload=file.not_text, size=file.bytes)])
    if file.kind == "parquet":
        from automodel_cli.corpus.documents.cutting.parquet import cut_parquet  # pyarrow, which others do not need

        return cut_parquet(cut, at, row)
    if file.kind == "jsonl" or (file.kind == "json" and is_json_lines(file, cut.options)):
        return cut_lines(cut, at, "jsonl")
    if file.kind == "json":
        return cut_json_values(cut, at)
    if document == "line":
        return cut_lines(cut, at, "line")
    if document != "file":
        return cut_delimited(cut, at, "delimited", document.encode())
    return cut_text(cut, at, cut_huge_texts, tail_from)
