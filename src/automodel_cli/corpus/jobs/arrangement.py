"""Which ids of which parts make which file: one task finds that out, and every file can then be made by itself.

The format's own writer is run over the parts' chunks in order, with ranges in place of ids, so that exact lengths,
splits, borders of shards and counts of bad rows are those of a run that writes ids. It leaves the indices of the files,
and for each file the ranges that it is made of. Where such a run would refuse (no text, an empty split, a bad row in
strict mode) the refusal is written down instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from pydantic import ConfigDict

from automodel_cli.corpus.jobs.part_files import PartTokens, read_header
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.jobs.token_range import read_ranges
from automodel_cli.corpus.jobs.work_folder import JobError
from automodel_cli.files import file_bytes, hash_file
from automodel_cli.json_files import Count, FileModel, Items, PlainName, Xxh3

FORMAT = "automodel-arrangement/1"
_RANGES_AT_ONCE = 1 << 16
_HINT = "start over with --overwrite"


class FileEntry(FileModel):
    """A ``PlannedFile`` in JSON; paths are names in the folder of the arrangement."""

    model_config = ConfigDict(extra="forbid")

    name: PlainName
    index_name: PlainName
    ranges: PlainName
    ranges_xxh3: Xxh3
    index: PlainName
    index_bytes: Count
    index_xxh3: Xxh3
    first: Count
    tokens: Count


class Refusal(FileModel):
    """Why there will be no files."""

    message: str
    hint: str
    no_text: bool


class Arrangement(FileModel):
    """What ``arranged.json`` holds.

    Attributes:
        folder: of indices and ranges, in the engine's folder.
        parts: the headers of the parts that files are made of, in order: files in the engine's folder.
        state: of the format's writer, closed.
        notes: what a run here would have said at its end.
    """

    model_config = ConfigDict(extra="forbid")

    folder: PlainName
    parts: Items[PlainName] = ()
    files: Items[FileEntry] = ()
    state: dict[str, Any] | None = None
    bad_rows: Count = 0
    first_bad_rows: Items[str] = ()
    notes: Items[str] = ()
    refusal: Refusal | None = None


class MadeFile(FileModel):
    """What ``file_000003.json`` holds: a token file that was made."""

    model_config = ConfigDict(extra="forbid")

    file: PlainName
    bytes: Count
    xxh3: Xxh3


MADE_FORMAT = "automodel-made-file/1"


def file_entry(folder: Path, file: PlannedFile) -> FileEntry:
    """A planned file as it stands in the arrangement in ``folder``; its index is hashed."""
    return FileEntry(
        name=file.name,
        index_name=file.index_name,
        ranges=file.ranges.relative_to(folder).as_posix(),
        ranges_xxh3=hash_file(file.ranges),
        index=file.index.relative_to(folder).as_posix(),
        index_bytes=file_bytes(file.index),
        index_xxh3=hash_file(file.index),
        first=file.first,
        tokens=file.tokens,
    )


def write_ids(out: IO[bytes], head: bytes, entry: FileEntry, engine: Path, made: Arrangement, itemsize: int) -> str:
    """Write ``head`` and the ids of a file, ``itemsize`` bytes each; its hash.

    Raises:
        JobError: parts are damaged or gone, or the ranges do not give as many ids as they should.
    """
    ranges = engine / made.folder / entry.ranges
    if not ranges.is_file() or hash_file(ranges) != entry.ranges_xxh3:
        raise JobError(f"{ranges} is missing or damaged: it does not match its hash", _HINT)
    digest = xxhash.xxh3_64(head)
    out.write(head)
    left = entry.tokens
    with ExitStack() as stack:
        opened: tuple[int, PartTokens] | None = None
        for part, start, stop in _from(read_ranges(ranges), entry.first):
            stop = min(stop, start + left)
            if opened is None or opened[0] != part:
                stack.close()
                opened = part, stack.enter_context(PartTokens(engine, read_header(engine / made.parts[part]), itemsize))
            for piece in opened[1].read(start, stop):
                out.write(piece)
                digest.update(piece)
            left -= stop - start
            if left == 0:
                break
    if left:
        raise JobError(f"{ranges} is damaged: {left:,} ids are missing", _HINT)
    return f"xxh3:{digest.hexdigest()}"


def _from(ranges: np.ndarray, first: int) -> Iterator[tuple[int, int, int]]:
    """The ranges from id number ``first`` of all of them on."""
    for begin in range(0, len(ranges), _RANGES_AT_ONCE):
        block = ranges[begin : begin + _RANGES_AT_ONCE]
        parts, starts, stops = (block[name].astype(np.int64) for name in ("part", "start", "stop"))
        ends = np.cumsum(stops - starts)
        skipped = int(np.searchsorted(ends, first, side="right"))
        if skipped:
            first -= int(ends[skipped - 1])
        for part, start, stop in zip(
            parts[skipped:].tolist(), starts[skipped:].tolist(), stops[skipped:].tolist(), strict=True
        ):
            yield part, start + first, stop
            first = 0
