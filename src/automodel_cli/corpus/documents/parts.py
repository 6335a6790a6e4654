"""A source in parts of about equal size that any process can read by itself, found without reading the text.

| what                                 | a part is                     | counted in                 |
|--------------------------------------|-------------------------------|----------------------------|
| .jsonl, text by line, not compressed | a range that ends at line ends| bytes                      |
| .parquet                             | some row groups               | row groups                 |
| everything else                      | whole files, small ones joined| -                          |

Parts decide only who reads what: their documents, one part after another, are those of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from automodel_cli.corpus.documents import compressed
from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.cutting import after_line_end, cut_files
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions, Unit

PART_BYTES = 256 << 20  # of text, about


@dataclass(frozen=True)
class Part:
    """Files ``file`` to ``stop_file`` whole; or of the one file ``file`` what is between ``start`` and ``stop``.

    Attributes:
        first_row: rows of the file before ``start`` where that is known without reading them, else None.
        goes_on: the file has more after ``stop``.
    """

    file: int
    stop_file: int
    start: int = 0
    stop: int | None = None
    first_row: int | None = 0
    goes_on: bool = False


def cut_parts(source: FileSource, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of ``source``, in order.

    Raises:
        DataError: a file cannot be read, or has no such column.
    """
    parts: list[Part] = []
    held = 0  # bytes of whole files in the last part
    for number, file in enumerate(source.files):
        ranges = list(_ranges(file, number, source.options, part_bytes))
        if len(ranges) > 1:
            parts += ranges
            held = 0
        elif held and held + file.bytes <= part_bytes:
            parts[-1] = replace(parts[-1], stop_file=number + 1)
            held += file.bytes
        else:
            parts.append(Part(number, number + 1))
            held = max(1, file.bytes)
    return parts


def _ranges(file: SourceFile, number: int, options: ReadOptions, part_bytes: int) -> Iterator[Part]:
    if file.not_text or file.compression:
        return iter(())
    if file.kind == "parquet":
        return _row_groups(file, number, options, part_bytes)
    if file.kind == "jsonl" or (file.kind == "text" and options.document == "line"):
        return _lines(file, number, part_bytes)
    return iter(())


def _lines(file: SourceFile, number: int, part_bytes: int) -> Iterator[Part]:
    start = 0
    with stream_errors(file.name), compressed.open_stream(file.path, "") as handle:
        while start < file.bytes:
            stop = after_line_end(handle, start + part_bytes - 1, file.bytes)
            known = 0 if start == 0 else None
            yield Part(number, number + 1, start, stop, first_row=known, goes_on=stop < file.bytes)
            start = stop


def _row_groups(file: SourceFile, number: int, options: ReadOptions, part_bytes: int) -> Iterator[Part]:
    from automodel_cli.corpus.documents import columns  # pyarrow, which other files do not need

    groups = columns.inspect_parquet(file.path, file.name, options)
    before = list(accumulate((group.rows for group in groups), initial=0))
    start = 0
    while start < len(groups):
        stop, size = start, 0
        while stop < len(groups) and (stop == start or size + groups[stop].text_bytes <= part_bytes):
            size += groups[stop].text_bytes
            stop += 1
        goes_on = stop < len(groups)
        yield Part(number, number + 1, start, stop, first_row=before[start], goes_on=goes_on)
        start = stop


def part_units(source: FileSource, part: Part, chunk_bytes: int) -> Iterator[Unit]:
    """The units of one part.

    Raises:
        DataError: a file cannot be read to its end.
    """
    return cut_files(
        source.files[: part.stop_file],
        source.options,
        {"file": part.file, "at": part.start},
        chunk_bytes=chunk_bytes,
        cut_huge_texts=source.cut_huge_texts,
        tail_from=source.tail_from,
        stop=part.stop,
    )
