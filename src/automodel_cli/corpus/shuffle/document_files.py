"""Shuffled rows to .jsonl files: validation first, then the chunks, all under temporary names until the last is whole.

The rows come in the order of their keys, so the first ``val_documents`` are a uniform draw, and so is each chunk.
Chunks are runs of this order: ``chunks`` of nearly equally many documents, or as many as need ``chunk_bytes`` each.
Files are hashed as they are written and flushed to the disk in the background, so that closing them takes no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents.units import Split
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.manifest import ListedFile
from automodel_cli.errors import DataError
from automodel_cli.files import ANY_TEMPORARY, disk_errors_named, fsync_folder, temporary_of
from automodel_cli.json_files import Count

_NAME_ENDS = r"\.(chunk\.\d{5,}|val)\.jsonl"
_AHEAD = 2  # pieces that wait to be written while the next ones are sorted


@dataclass(frozen=True)
class Division:
    """How many documents there are for which file; ``chunk_bytes`` instead of ``chunks`` where it is not None."""

    val_documents: int
    train_documents: int
    chunks: int = 1
    chunk_bytes: int | None = None

    def split_of(self, number: int) -> Split:
        """The split of file ``number``; validation comes first, where there is any."""
        return "val" if self.val_documents and number == 0 else "train"

    def name_of(self, number: int, name: str) -> str:
        """The name of file ``number``, which begins with ``name``."""
        chunk = number - bool(self.val_documents)
        return chunk_name(name, chunk) if self.split_of(number) == "train" else val_name(name)

    def quota(self, number: int) -> int | None:
        """Documents of file ``number``; None where its bytes decide."""
        if self.split_of(number) == "val":
            return self.val_documents
        chunk, documents, chunks = number - bool(self.val_documents), self.train_documents, self.chunks
        return None if self.chunk_bytes else (chunk + 1) * documents // chunks - chunk * documents // chunks


@dataclass(frozen=True)
class Amounts:
    """What was asked for: documents, or a fraction of them, for validation; the others in ``chunks`` files of nearly
    equally many, or in files of at most ``chunk_bytes``."""

    val_documents: int | None = None
    val_fraction: float | None = None
    chunks: int = 1
    chunk_bytes: int | None = None

    @property
    def val_below(self) -> int:
        """Documents with a smaller key validate; 0 where no fraction was asked for."""
        return 0 if self.val_fraction is None else int(self.val_fraction * 2**64)

    def divide(self, kept: int, below: int, name: str, bad_rows: BadRows) -> Division:
        """How many documents go where. Those with the smallest keys validate, so the splits cannot overlap.

        Args:
            kept: documents there are.
            below: those among them with a key below ``val_below``.
            name: of the source.

        Raises:
            DataError: there are too few.
        """
        if kept == 0:
            raise DataError(
                f"{name} holds no documents ({bad_rows.in_words()})",
                "check --dataset, --text-key and --document",
            )
        val = (self.val_documents or 0) if self.val_fraction is None else below
        train = kept - val
        if train < self.chunks or (self.val_fraction is not None and val == 0):
            wanted = self.val_documents or self.val_fraction
            raise DataError(
                f"{kept:,} documents are too few for {self.chunks:,} chunks"
                + (f" and {val:,} documents of validation" if wanted else ""),
                "ask for fewer chunks, another amount for validation, or another seed",
            )
        return Division(val, train, self.chunks, self.chunk_bytes)


class Allotment:
    """Deals rows, which come in the order of their keys, out to files.

    Attributes:
        number: of the file that the last row went to.
        documents, bytes: what that file has.
    """

    def __init__(self, division: Division) -> None:
        self._division = division
        self.number = self.documents = self.bytes = 0

    def cut(self, lengths: np.ndarray) -> Iterator[tuple[int, slice, slice]]:
        """For each file that some of the next rows (``lengths`` in bytes, int64) go to: its number, which rows, and
        where they lie among the bytes of these rows."""
        ends = np.cumsum(lengths)
        first = 0
        while first < len(lengths):
            begin = int(ends[first] - lengths[first])
            fits = self._room(ends - begin, first)
            if fits <= 0:
                self.number, self.documents, self.bytes = self.number + 1, 0, 0
                continue
            stop = min(first + fits, len(ends))
            end = int(ends[stop - 1])
            self.documents += stop - first
            self.bytes += end - begin
            yield self.number, slice(first, stop), slice(begin, end)
            first = stop

    def _room(self, ends: np.ndarray, first: int) -> int:
        """How many of the rows from ``first`` on the file takes, at least one if it is empty."""
        quota = self._division.quota(self.number)
        if quota is not None:
            return quota - self.documents
        room = (self._division.chunk_bytes or 0) - self.bytes
        return max(int(np.searchsorted(ends, room, "right")) - first, int(self.documents == 0))


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
        self._allotment = Allotment(division)
        self._files: list[DocumentFile] = []
        self._open: OpenFile | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self.documents = 0

    def feed(self, data: np.ndarray, lengths: np.ndarray) -> None:
        """Take rows: ``data`` (uint8) holds them one after another.

        Raises:
            AutomodelError: the disk is full (perhaps on account of earlier rows).
        """
        for number, rows, place in self._allotment.cut(lengths):
            if self._open is not None and number > len(self._files):
                self._end()
            if self._open is None:
                name = self._division.name_of(number, self._name)
                self._open = OpenFile(self._folder / name, self._division.split_of(number))
            self._submit(self._open, data[place], rows.stop - rows.start)
        self.documents += len(lengths)

    def _submit(self, file: OpenFile, data: np.ndarray, documents: int) -> None:
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


class OpenFile:
    """One file under its temporary name. ``write`` and ``close`` run in one thread at a time."""

    def __init__(self, path: Path, split: Split) -> None:
        self.documents = self.bytes = 0
        self._path, self._split = path, split
        self._hash = xxhash.xxh3_64()
        with disk_errors_named(path):
            self._file = GrowingFile(path)

    def write(self, data: np.ndarray) -> None:
        """Append rows."""
        with disk_errors_named(self._path):
            self._file.write(data.data)
        self._hash.update(data.data)

    def close(self) -> DocumentFile:
        """Make it durable, still under its temporary name."""
        with disk_errors_named(self._path):
            self._file.sync()
            self._file.close()
        return DocumentFile(
            name=self._path.name,
            split=self._split,
            documents=self.documents,
            bytes=self.bytes,
            xxh3=f"xxh3:{self._hash.hexdigest()}",
        )

    def abandon(self) -> None:
        """Remove it."""
        self._file.abandon()
