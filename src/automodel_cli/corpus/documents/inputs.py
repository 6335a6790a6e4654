"""Input files, on a disk or in object storage: the readers of documents open, read and look here, by path.

The path of an object is its pinned URL (``storage.reading``), so any process reads what was listed. A worker that knows
which unit comes next asks for its bytes while it works on the one before (``announce``), so that it hardly ever waits.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from automodel_cli.corpus.documents.units import Unit
from automodel_cli.files import read_range
from automodel_cli.json_files import open_to_read
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.reading import ObjectFile, ObjectStream, read_exactly, reading_threads, unpinned
from automodel_cli.storage.urls import is_remote

_BUFFER_BYTES = 1 << 20
_announced: dict[tuple[str, int, int], Future[bytes]] = {}


def open_input(path: str) -> BinaryIO:
    """The bytes of a file from its start; of an object they are read ahead.

    Raises:
        OSError: as :func:`open_to_read`.
        AutomodelError: an object cannot be read, or is not the one that was listed.
    """
    if not is_remote(path):
        return open_to_read(path)
    info = unpinned(path)
    return cast(BinaryIO, io.BufferedReader(ObjectStream(open_store(info.url), info), _BUFFER_BYTES))


def pread(handle: IO[bytes], count: int, at: int) -> bytes:
    """Bytes of what :func:`open_input` opened, whatever was read before."""
    raw = getattr(handle, "raw", None)
    return raw.pread(count, at) if isinstance(raw, ObjectStream) else os.pread(handle.fileno(), count, at)


def read_input(path: str, start: int, count: int) -> bytes:
    """``count`` bytes of a file from ``start`` on, fewer where it ends before; errors as :func:`open_input`."""
    if not is_remote(path):
        return read_range(path, start, count)
    if (known := _announced.pop((path, start, start + count), None)) is not None:
        return known.result()
    info = unpinned(path)
    return read_exactly(open_store(info.url), info, start, start + count)


def read_whole(path: str) -> bytes:
    """All of a file; errors as :func:`open_input`."""
    return read_input(path, 0, unpinned(path).size) if is_remote(path) else Path(path).read_bytes()


def arrow_input(path: str) -> Any:
    """What pyarrow opens: the path, or an object as a file."""
    if not is_remote(path):
        return path
    info = unpinned(path)
    return ObjectFile(open_store(info.url), info)


def announce(unit: Unit) -> None:
    """Ask for the bytes that a reader of ``unit`` will want, in the background; nothing for files on a disk."""
    if unit.kind == "files":
        wanted = [(path, 0, unpinned(path).size) for path, _ in unit.payload if is_remote(path)]
    elif unit.payload is None and unit.kind in ("jsonl", "line", "delimited", "piece") and is_remote(unit.path):
        wanted = [(unit.path, unit.start, unit.stop)]
    else:
        return
    for path, start, stop in wanted:
        info = unpinned(path)
        store = open_store(info.url)
        _announced[path, start, stop] = reading_threads().submit(read_exactly, store, info, start, stop)


def announced(units: Iterable[Unit]) -> Iterator[Unit]:
    """``units``; those of objects are asked for one ahead. For who works on units one after another."""
    held: Unit | None = None
    for unit in units:
        if held is None and not _is_of_objects(unit):
            yield unit
            continue
        announce(unit)
        if held is not None:
            yield held
        held = unit
    if held is not None:
        yield held


def _is_of_objects(unit: Unit) -> bool:
    return is_remote(unit.payload[0][0] if unit.kind == "files" else unit.path)
