"""Where text comes from: local files (a file, a folder, a glob) or a Hub dataset, as units of work.

Files are read in the order of their names, so the same folder gives the same documents anywhere. Plain
files are cut into byte ranges at document borders, found with small reads, and the workers read their ranges
themselves; what cannot be cut (compressed files, JSON arrays, huge parquet row groups, Hub streams) is read here
and handed over in pieces. So one huge file keeps every worker busy and memory does not grow with the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol

from automodel_cli.corpus.documents.compressed import likely_expansion
from automodel_cli.corpus.documents.cutting.files import cut_files
from automodel_cli.corpus.documents.cutting.texts import count_characters
from automodel_cli.corpus.documents.listing import SourceFile, dataset_name, is_local, list_several
from automodel_cli.corpus.documents.units import InputFormat, ReadOptions, Unit
from automodel_cli.files import hash_bytes
from automodel_cli.text import plural

BYTES_PER_DOCUMENT = 8 << 10  # a chunk of n documents is n times this where a file is cut by bytes


class Source(Protocol):
    """A deterministic sequence of documents, in units, with positions to continue from."""

    name: str
    note: str
    total_bytes: int | None
    options: ReadOptions

    def units(self, cursor: dict[str, Any] | None, chunk_documents: int) -> Iterator[Unit]:
        """The units from ``cursor`` (or the start) on."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the manifest: what was read, without absolute paths or times."""
        ...

    def identity(self) -> str:
        """Changes when the input changes, so that an interrupted run does not go on with other text."""
        ...


class Reading(Protocol):
    """The settings of a command that say how text is read."""

    document: str
    input_format: InputFormat
    max_document_bytes: int


def read_options(cfg: Reading, *keys: str, lists: bool = False) -> ReadOptions:
    """The same as options of readers; ``keys`` are the fields of rows that hold text."""
    return ReadOptions(
        keys[0],
        unescape(cfg.document),
        more_keys=keys[1:],
        lists=lists,
        input_format=cfg.input_format,
        max_document_bytes=cfg.max_document_bytes,
    )


def open_source(dataset: str, options: ReadOptions, set_name: str | None = None, split: str = "train") -> Source:
    """The source that ``dataset`` names: local files, or a dataset of the Hub.

    Raises:
        DataError: there is no such file or folder.
    """
    if is_local(dataset):
        return FileSource(dataset, options, split)
    from automodel_cli.corpus.documents.hub import HubSource  # leads to `datasets`

    return HubSource(dataset, set_name, split, options)


def source_in_words(described: dict[str, Any]) -> str:
    """What ``Source.describe`` says, for people."""
    if described["kind"] == "hub":
        parts = [f"split {described['split']}"]
        if described["set_name"] is not None:
            parts.insert(0, described["set_name"])
        return f"{described['name']} ({', '.join(parts)}) from the Hugging Face Hub"
    count, names = described["files"], described["first_files"]
    shown = ", ".join([*names[:3], *(["..."] if count > 3 else [])])
    return f"{plural(count, 'file')}, {described['bytes'] / 1e6:,.1f} MB: {shown}"


class FileSource:
    """Local files as units of work.

    ``cut_huge_texts``: the tokenizer allows a text to be cut between a letter and a space. ``tail_from`` is the
    character at which a single text document is cut into a training and a validation document.
    """

    def __init__(self, dataset: str | Sequence[str], options: ReadOptions, split: str = "train") -> None:
        datasets = [dataset] if isinstance(dataset, str) else list(dataset)
        listing = list_several(datasets, split, options.input_format)
        self.name = dataset_name(datasets[0])
        self.files = listing.files
        self.note = listing.note
        self.options = options
        self.cut_huge_texts = False
        self.tail_from: int | None = None
        self.total_bytes: int | None = sum(file.bytes for file in self.files)
        if any(file.compression for file in self.files):
            self.total_bytes = None  # progress counts text; the size of a compressed file is another thing

    @property
    def documents_are_files(self) -> bool:
        """Whether every file is one document."""
        return self.options.document == "file" and all(file.kind == "text" for file in self.files)

    @property
    def single_document(self) -> bool:
        """Whether all of it is one text file that is one document."""
        return len(self.files) == 1 and self.files[0].kind == "text" and self.options.document == "file"

    def cut_tail(self, fraction: float) -> None:
        """Make two documents of the single one: at character ``int(n * (1 - fraction))``, as nanoGPT does."""
        assert self.single_document
        self.tail_from = int(count_characters(self.files[0], self.options) * (1 - fraction))

    def units(self, cursor: dict[str, Any] | None, chunk_documents: int) -> Iterator[Unit]:
        units = cut_files(
            self.files,
            self.options,
            cursor or {"file": 0, "at": 0},
            chunk_bytes=chunk_documents * BYTES_PER_DOCUMENT,
            cut_huge_texts=self.cut_huge_texts,
            tail_from=self.tail_from,
        )
        return _with_shares_done(units, self.files, self.options)

    def describe(self) -> dict[str, Any]:
        listed = "\n".join(f"{file.name}\t{file.bytes}" for file in self.files)
        return {
            "kind": "files",
            "name": self.name,
            "files": len(self.files),
            "bytes": sum(file.bytes for file in self.files),
            "first_files": [file.name for file in self.files[:10]],
            "names_and_sizes": hash_bytes(listed.encode()),
        }

    def identity(self) -> str:
        listed = [f"{file.name}\t{file.bytes}\t{file.stamp}" for file in self.files]
        return hash_bytes("\n".join(listed).encode())


def _with_shares_done(units: Iterator[Unit], files: Sequence[SourceFile], options: ReadOptions) -> Iterator[Unit]:
    """The same units with ``through``, by what the files take on the disk: what every bar of progress shows.

    Text is measured in bytes, parquet in rows; of a compressed file it is an estimate from its beginning.
    """
    before = list(accumulate((file.bytes for file in files), initial=0))
    file: _FileProgress | None = None
    for unit in units:
        if file is None or file.index != unit.file:
            file = _FileProgress(unit, files[unit.file], options)
        share = file.share_with(unit)
        done = before[unit.file] + (unit.size if unit.kind == "files" else share * files[unit.file].bytes)
        held = [replace(unit, through=min(1.0, done / max(1, before[-1])))]
        del unit  # it may hold the largest document there is
        yield held.pop()


class _FileProgress:
    """One file: how large it is in its own measure, and how much of that is done."""

    def __init__(self, first: Unit, file: SourceFile, options: ReadOptions) -> None:
        self.index, self.by_rows = first.file, file.kind == "parquet" and not file.not_text
        at = first.cursor["at"]
        if self.by_rows:
            from automodel_cli.corpus.documents import columns  # pyarrow, which other files do not need

            rows = [group.rows for group in columns.inspect_parquet(file.path, file.name, options)]
            self.whole, self.done = float(sum(rows)), sum(rows[:at]) + first.cursor.get("row", 0)
        else:
            packed = file.compression
            self.whole = file.bytes * (likely_expansion(file.path, file.name, packed) if packed else 1.0)
            self.done = 0 if first.kind == "values" else at  # those are counted, not measured

    def share_with(self, unit: Unit) -> float:
        """The part of the file that is done with this unit."""
        self.done += (unit.rows or 0) if self.by_rows else unit.size
        return min(1.0, self.done / max(1.0, self.whole))


def unescape(delimiter: str) -> str:
    r"""``\n``, ``\t``, ``\r``, ``\0`` and ``\\`` as a shell user types them."""
    plain = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
    return re.sub(r"\\([ntr0\\])", lambda match: plain[match[1]], delimiter)
