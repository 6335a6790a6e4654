"""Shuffled rows to .jsonl files: validation first, then the chunks, all under temporary names until the last is whole.

The rows come in the order of their keys, so the first ``val_documents`` are a uniform draw, and so is each chunk.
Chunks are runs of this order: ``chunks`` of nearly equally many documents, or as many as need ``chunk_bytes`` each.
Files are hashed as they are written and flushed to the disk in the background, so that closing them takes no time.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from automodel_cli.corpus.documents.units import Split
from automodel_cli.corpus.formats.manifest import ListedFile
from automodel_cli.files import ANY_TEMPORARY, GrowingFile, disk_errors_named, fsync_folder, temporary_of
from automodel_cli.json_files import Count

_SYNC_BYTES = 64 << 20  # written between two flushes to the disk
_NAME_ENDS = r"\.(chunk\.\d{5,}|val)\.jsonl"
_AHEAD = 2  # pieces that wait to be written while the next ones are sorted


@dataclass(frozen=True)
class Division:
    """How many documents there are for which file; ``chunk_bytes`` instead of ``chunks`` where it is not None."""

    val_documents: int
    train_documents: int
    chunks: int = 1
    chunk_bytes: int | None = None

    def quota(self, chunk: int) -> int:
        """Documents of chunk number ``chunk``."""
        return (chunk + 1) * self.train_documents // self.chunks - chunk * self.train_documents // self.chunks


@dataclass(frozen=True, kw_only=True)
class DocumentFile(ListedFile):
    """A finished file of documents."""

    split: Split
    documents: Count


def chunk_name(name: str, chunk: int) -> str:
    """``NAME.chunk.00000.jsonl``, as lingua numbers its files; sorted by name they are in order."""
    return f"{name}.chunk.{chunk:05d}.jsonl"


def val_name(name: str) -> str:
    """``NAME.val.jsonl``, which no pattern for chunks matches."""
    return f"{name}.val.jsonl"


def names_of(name: str) -> re.Pattern[str]:
    """All names that a run may write, temporary ones too (also those of versions that wrote ``.tmp``)."""
    return re.compile(rf"{re.escape(name)}{_NAME_ENDS}{ANY_TEMPORARY}")


def is_document_file(name: str) -> bool:
    """Whether ``name`` is one that a run gives its files, whatever its ``--name`` was."""
    return re.fullmatch(rf"[^/]+{_NAME_ENDS}", name) is not None


class DocumentWriter:
    """Takes all rows in order; ``finish`` makes them durable, ``publish`` gives the files their names."""

    def __init__(self, folder: Path, name: str, division: Division) -> None:
        self._folder, self._name, self._division = folder, name, division
        self._files: list[DocumentFile] = []
        self._open: _OpenFile | None = None
        self._chunk = 0
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self.documents = 0

    def feed(self, data: np.ndarray, lengths: np.ndarray) -> None:
        """Take rows: ``data`` (uint8) holds them one after another.

        Raises:
            AutomodelError: the disk is full (perhaps on account of earlier rows).
        """
        ends = np.cumsum(lengths)
        first = 0
        while first < len(lengths):
            begin = int(ends[first] - lengths[first])
            file, stop = self._where(ends - begin, first)
            end = int(ends[stop - 1])
            self._submit(file, data[begin:end], stop - first)
            first = stop
        self.documents += len(lengths)

    def _where(self, ends: np.ndarray, first: int) -> tuple[_OpenFile, int]:
        """The file for row ``first``, and how far the rows that go there reach (at least one)."""
        while True:
            file = self._open or self._begin()
            if file.quota is not None:
                fits = file.quota - file.documents
            else:
                room = (self._division.chunk_bytes or 0) - file.bytes
                fits = max(int(np.searchsorted(ends, room, "right")) - first, int(file.documents == 0))
            if fits > 0:
                return file, min(first + fits, len(ends))
            self._end()

    def _begin(self) -> _OpenFile:
        division = self._division
        if self._files or not division.val_documents:
            quota = None if division.chunk_bytes else division.quota(self._chunk)
            self._open = _OpenFile(self._folder / chunk_name(self._name, self._chunk), "train", quota)
            self._chunk += 1
        else:
            self._open = _OpenFile(self._folder / val_name(self._name), "val", division.val_documents)
        return self._open

    def _submit(self, file: _OpenFile, data: np.ndarray, documents: int) -> None:
        file.documents += documents
        file.bytes += len(data)
        if len(self._pending) >= _AHEAD:
            self._pending.pop(0).result()
        self._pending.append(self._thread.submit(file.write, data))

    def _end(self) -> None:
        """The open file has all its rows."""
        assert self._open is not None
        self._wait()
        self._files.append(self._open.close())
        self._open = None

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def finish(self) -> list[DocumentFile]:
        """All rows are here: make the files durable."""
        if self._open is not None:
            self._end()
        self._thread.shutdown()
        return self._files

    def publish(self) -> None:
        """Give the files their names, in an instant; the manifest has to follow."""
        for file in self._files:
            path = self._folder / file.name
            temporary_of(path).replace(path)
        fsync_folder(self._folder)

    def abandon(self) -> None:
        """After an error: leave nothing."""
        self._thread.shutdown(cancel_futures=True)
        if self._open is not None:
            self._open.abandon()
        for file in self._files:
            path = self._folder / file.name
            for left in (path, temporary_of(path)):
                left.unlink(missing_ok=True)


class _OpenFile:
    """One file under its temporary name. ``write`` and ``close`` run in one thread at a time."""

    def __init__(self, path: Path, split: Split, quota: int | None) -> None:
        self.quota = quota
        self.documents = self.bytes = 0
        self._path, self._split = path, split
        self._hash = xxhash.xxh3_64()
        self._unsynced = 0
        self._flusher = ThreadPoolExecutor(1)
        self._flushes: list[Future[None]] = []
        with disk_errors_named(path):
            self._file = GrowingFile(path)

    def write(self, data: np.ndarray) -> None:
        """Append rows."""
        with disk_errors_named(self._path):
            self._file.handle.write(data.data)
        self._hash.update(data.data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._file.handle.flush()
            self._flushes.append(self._flusher.submit(os.fsync, self._file.handle.fileno()))

    def close(self) -> DocumentFile:
        """Make it durable, still under its temporary name."""
        self._flusher.shutdown()
        with disk_errors_named(self._path):
            for flush in self._flushes:  # the kernel tells of a failed write once
                flush.result()
            self._file.sync()
            self._file.handle.close()
        return DocumentFile(
            name=self._path.name,
            split=self._split,
            documents=self.documents,
            bytes=self.bytes,
            xxh3=f"xxh3:{self._hash.hexdigest()}",
        )

    def abandon(self) -> None:
        """Remove it."""
        self._flusher.shutdown(cancel_futures=True)
        self._file.abandon()
