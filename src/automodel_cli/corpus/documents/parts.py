"""A source in parts: runs of documents that are found cheaply, so that many machines can each read some of them.

| what                                   | where parts may end                    | what it takes to find that    |
|----------------------------------------|----------------------------------------|-------------------------------|
| plain JSON lines, text by line         | after a line end                       | one small read a part         |
| .parquet                               | between row groups                     | the footer of each file       |
| anything else in files                 | between files                          | nothing                       |
| a stream of the Hub                    | nowhere: it is one part                | nothing                       |

Documents of the parts, one part after the other, are those of the source, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from automodel_cli.corpus.documents import compressed
from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.cutting.files import cut_files, small_group
from automodel_cli.corpus.documents.cutting.json_files import is_json_lines
from automodel_cli.corpus.documents.cutting.rows import after_line_end
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.source import BYTES_PER_DOCUMENT, FileSource, Source
from automodel_cli.corpus.documents.units import ReadOptions, Unit

PART_BYTES = 256 << 20
"""Of text, about and at most: a minute's work for a core, and not too many parts of a terabyte."""
_LEAST_PART_BYTES = 16 << 20  # less is over sooner than a worker has started
_LIKELY_PARTS = 256  # of less than 64 GiB, so that it is work for many machines too
_EXPANSION = 4  # of a compressed file; it decides nothing but how many of them make a part


@dataclass(frozen=True)
class Part:
    """From position ``at`` of file ``file`` to before position ``stop_at`` of file ``stop_file``.

    Positions are bytes, of parquet files row groups. ``bytes`` of input, about.
    """

    file: int
    at: int
    stop_file: int
    stop_at: int
    bytes: int


def find_parts(source: Source, chunk_documents: int, part_bytes: int | None = None) -> list[Part]:
    """The parts of ``source``, of about ``part_bytes`` each; None: as its size suggests.

    Raises:
        DataError: a file cannot be read.
    """
    if not isinstance(source, FileSource):
        return [Part(0, 0, 1, 0, source.total_bytes or 0)]
    wanted = _usual_bytes(source) if part_bytes is None else part_bytes
    return list(_Finder(source, chunk_documents * BYTES_PER_DOCUMENT, wanted).parts())


def part_units(source: Source, part: Part, chunk_documents: int) -> Iterator[Unit]:
    """The units of one part.

    Raises:
        DataError: a file cannot be read to its end.
    """
    if not isinstance(source, FileSource):
        return source.units(None, chunk_documents)
    return cut_files(
        source.files[: part.stop_file + (part.stop_at > 0)],
        source.options,
        {"file": part.file, "at": part.at},
        chunk_bytes=chunk_documents * BYTES_PER_DOCUMENT,
        cut_huge_texts=source.cut_huge_texts,
        tail_from=source.tail_from,
        stop_at=part.stop_at or None,
    )


def _usual_bytes(source: FileSource) -> int:
    total = sum(file.bytes * (_EXPANSION if file.compression else 1) for file in source.files)
    return min(PART_BYTES, max(_LEAST_PART_BYTES, total // _LIKELY_PARTS))


class _Finder:
    """Walks over the files and ends a part where it has enough."""

    def __init__(self, source: FileSource, chunk_bytes: int, part_bytes: int) -> None:
        self._source, self._chunk_bytes, self._part_bytes = source, chunk_bytes, part_bytes
        self._begin, self._bytes = (0, 0), 0

    def parts(self) -> Iterator[Part]:
        """All parts, in the order of the source."""
        files, number = self._source.files, 0
        while number < len(files):
            # Small files that make one unit stay together, as they do in one run over the source.
            together = self._small_group(number)
            if together:
                self._bytes += sum(file.bytes for file in together)
            else:
                yield from self._inside(number, files[number])
            number += max(1, len(together))
            if self._bytes >= self._part_bytes:
                yield self._end(number, 0)
        if self._begin < (len(files), 0):
            yield self._end(len(files), 0)

    def _end(self, file: int, at: int) -> Part:
        part = Part(*self._begin, file, at, self._bytes)
        self._begin, self._bytes = (file, at), 0
        return part

    def _small_group(self, first: int) -> list[SourceFile]:
        source = self._source
        return (
            [] if source.tail_from is not None else small_group(source.files, first, source.options, self._chunk_bytes)
        )

    def _inside(self, number: int, file: SourceFile) -> Iterator[Part]:
        """Parts that end in a file; what is left of it counts towards the next one."""
        if _has_lines(file, self._source.options):
            yield from self._in_lines(number, file)
        elif file.kind == "parquet" and not file.not_text:
            yield from self._in_row_groups(number, file)
        else:
            size = file.bytes * (_EXPANSION if file.compression else 1)
            if self._bytes and size >= self._part_bytes:
                yield self._end(number, 0)
            self._bytes += size

    def _in_lines(self, number: int, file: SourceFile) -> Iterator[Part]:
        at = 0
        with stream_errors(file.name), compressed.open_stream(file.path, "") as handle:
            while at + self._part_bytes - self._bytes < file.bytes:
                stop = after_line_end(handle, at + self._part_bytes - self._bytes - 1, file.bytes)
                if stop == file.bytes:
                    break
                self._bytes += stop - at
                at = stop
                yield self._end(number, at)
        self._bytes += file.bytes - at

    def _in_row_groups(self, number: int, file: SourceFile) -> Iterator[Part]:
        from automodel_cli.corpus.documents import columns  # pyarrow, which other kinds of files do not need

        groups = columns.inspect_parquet(file.path, file.name, self._source.options)
        for count, group in enumerate(groups, start=1):
            self._bytes += group.text_bytes
            if self._bytes >= self._part_bytes and count < len(groups):
                yield self._end(number, count)


def _has_lines(file: SourceFile, options: ReadOptions) -> bool:
    """Whether a plain file has one row a line."""
    if file.compression or file.not_text:
        return False
    if file.kind == "text":
        return options.document == "line"
    return file.kind == "jsonl" or (file.kind == "json" and is_json_lines(file, options))
