"""The pieces of work that pass between reader, workers and writer. All of them can be pickled.

A ``Unit`` says what to read, a ``Texts`` is what was read, a ``TokenChunk`` what became of it. Where one unit
ends and the next begins changes with the chunk size; the documents, their order and their bytes do not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["jsonl", "line", "delimited", "files", "piece", "parquet", "rows", "values", "bad"]
Split = Literal["train", "val"]
InputFormat = Literal["auto", "text", "jsonl", "json", "parquet"]
MAX_DOCUMENT_BYTES = 256 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How text is found in rows and files.

    Attributes:
        text_key: the field of a row that holds its text.
        document: what a document is in text files: "file", "line" or a delimiter.
        more_keys: further fields; a row then must have all of them.
        lists: a field may also hold a list of texts; a document then is a tuple with a value for each key.
        carried: columns of parquet files that are read besides, whatever they hold.
        input_format: what files are; "auto": what their names say.
        max_document_bytes: longer documents, as they stand in the file, are cut or left out as bad rows.
    """

    text_key: str = "text"
    document: str = "file"
    more_keys: tuple[str, ...] = ()
    lists: bool = False
    carried: tuple[str, ...] = ()
    input_format: InputFormat = "auto"
    max_document_bytes: int = MAX_DOCUMENT_BYTES

    @property
    def keys(self) -> tuple[str, ...]:
        """All fields that hold text, in order."""
        return (self.text_key, *self.more_keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of a parquet file that are read, in order."""
        return (*self.keys, *(name for name in self.carried if name not in self.keys))


@dataclass(frozen=True)
class Unit:
    """A run of documents to read, and the cursor at which a later run would begin with it.

    Attributes:
        kind: which reader serves it.
        name: the file, as people know it.
        file: number of the file in its source; row numbers begin anew with each.
        cursor: JSON; ``source.units(cursor)`` begins with this unit.
        path, start, stop: bytes (``parquet``: rows) to read, unless ``payload`` already holds the data.
        size: bytes of input this stands for.
        rows: how many rows it holds, where the cutter knows that without reading them.
        first_row: rows of its file in earlier units, where somebody counted them (``scatter``).
        alone: it is one document (with its line end or delimiter), longer than units usually are; no two of these
            are worked on at a time.
        measured: its documents were found to be short enough before.
        continues, unfinished: the first document began in the unit before; the last goes on in the next.
        split: the split that a tail cut chose, else None.
        through: part of the source that is done with this unit, 0 to 1; None: nobody knows.
        ordinals: numbers of its rows' documents in the source, where they are not simply the next ones (int64).
    """

    kind: Kind
    name: str
    file: int
    cursor: dict[str, Any]
    path: str = ""
    start: int = 0
    stop: int = 0
    payload: Any = None
    size: int = 0
    rows: int | None = None
    first_row: int = 0
    alone: bool = False
    measured: bool = False
    continues: bool = False
    unfinished: bool = False
    split: Split | None = None
    through: float | None = None
    ordinals: np.ndarray | None = None


@dataclass(frozen=True)
class BadRow:
    """A row without usable text: where (counted from 0 in its unit, or a file's name) and why.

    ``after`` is the number of documents before it in its unit: a run that stops earlier has not met it.
    """

    row: int
    reason: str
    name: str | None = None
    after: int = 0


@dataclass
class Texts:
    """Documents of one unit; ``rows`` counts every row that was looked at, bad ones too.

    A document is a text; with ``ReadOptions.lists`` it is a tuple, for each key a text or a list of texts.
    ``numbers`` has the row of each document, counted from 0 in the unit (in a run of small files: the file).
    """

    texts: list[Any]
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def add(self, row: int, text: Any, name: str | None = None) -> None:
        """Take in a document, or note that row number ``row`` has none."""
        if isinstance(text, BadRow):
            self.bad.append(BadRow(row, text.reason, name, after=len(self.texts)))
        else:
            self.texts.append(text)
            self.numbers.append(row)


# ---------------------------------------------------------------------------------------------- rows
# What a decoded row holds: its text, or what is wrong with it. Readers of every kind of file ask here. A reason is a
# ``BadRow`` of row 0; who knows the number of the row puts it in.

NOT_UTF8 = "not UTF-8"
_MISSING = object()
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def too_long(max_bytes: int) -> BadRow:
    """The reason for a document that is longer than ``max_bytes``."""
    return BadRow(0, f"longer than {max_bytes:,} bytes (--max-document-bytes)")


def text_of(value: Any) -> str | BadRow:
    """A text that can be encoded, or what is wrong with it."""
    if isinstance(value, BadRow):
        return value
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return BadRow(0, "lone surrogate")
        return value
    if value is _MISSING:
        return BadRow(0, "no text key")
    return BadRow(0, "text is null" if value is None else f"text is {_kind_of(value)}, not a string")


def _kind_of(value: Any) -> str:
    return "a string" if type(value) is str else _KINDS.get(type(value), type(value).__name__)


def usable_fields(values: tuple[Any, ...], keys: tuple[str, ...]) -> tuple[Any, ...] | BadRow:
    """``values`` if each is a text, or a list of texts, that can be encoded; else what is wrong with one."""
    for key, value in zip(keys, values, strict=True):
        for text in value if type(value) is list else (value,):
            found = text_of(text)
            if isinstance(found, BadRow):
                where = f" in {key!r}" if len(keys) > 1 else ""
                inside = " in a list" if type(value) is list else ""
                return BadRow(0, f"{found.reason}{inside}{where}")
    return values


def document_of(row: Any, options: ReadOptions) -> Any:
    """The document that a decoded row holds, as ``options`` has it, or a BadRow."""
    if not isinstance(row, dict):
        return BadRow(0, f"row is {_kind_of(row)}, not an object")
    if options.lists:
        return usable_fields(tuple([row.get(key, _MISSING) for key in options.keys]), options.keys)
    return text_of(row.get(options.text_key, _MISSING))


# --------------------------------------------------------------------------------------------- chunks


@dataclass
class Chunk:
    """What became of one unit: what passes between processes, and what the pipeline counts.

    Attributes:
        tokens: all ids, if any.
        rows, bad: rows that were looked at, and those among them without usable text.
        text_bytes: UTF-8 bytes of input.
    """

    tokens: np.ndarray
    rows: int = field(default=0, kw_only=True)
    bad: list[BadRow] = field(default_factory=list, kw_only=True)
    text_bytes: int = field(default=0, kw_only=True)


@dataclass
class FieldSequences:
    """The sequences of one field of a unit's rows. Every row is a document, of one, several or no sequences.

    Attributes:
        num_tokens: how many of the chunk's ids are this field's.
        lengths: ids of each sequence, int64; none is 0.
        sizes: sequences of each document, int64.
    """

    num_tokens: int
    lengths: np.ndarray
    sizes: np.ndarray

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Where sequences end, in tokens, after a 0."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Where documents end, in sequences, after a 0."""
        return np.concatenate(([0], np.cumsum(self.sizes, dtype=np.int64)))

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """Where documents begin, in tokens; one more for the end."""
        return self.ends[self.bounds]

    def of_documents(self, tokens: np.ndarray, first: int, stop: int) -> tuple[np.ndarray, ...]:
        """Tokens, lengths and sizes of documents ``first`` to ``stop``; ``tokens`` are those from this field on."""
        lengths = self.lengths[self.bounds[first] : self.bounds[stop]]
        return tokens[self.begins[first] : self.begins[stop]], lengths, self.sizes[first:stop]

    def cut(self, documents: int, tokens: int) -> FieldSequences:
        """The first ``documents``, of which the last one ends after ``tokens``."""
        sequences = int(np.searchsorted(self.ends[: self.bounds[documents]], tokens))
        sizes = self.sizes[:documents].copy()
        sizes[-1:] = sequences - self.bounds[documents - 1]
        lengths = np.diff(np.minimum(self.ends[: sequences + 1], tokens))
        return FieldSequences(self.num_tokens, lengths, sizes)


@dataclass
class TokenChunk(Chunk):
    """Token ids of one unit, field after field (all documents of the first, then of the second, ...).

    Attributes:
        fields: one for each key, all with the same number of documents.
        file: number of the file in its source.
        continues: the first document is the rest of an earlier one.
        unfinished: the last one goes on in the next chunk.
        split: the split that a tail cut chose, else None.
        numbers: ``Texts.numbers`` as int64.
        ordinals: document numbers, if they are not simply the next ones (after a shuffle).
    """

    fields: list[FieldSequences]
    file: int = 0
    continues: bool = False
    unfinished: bool = False
    split: Split | None = None
    numbers: np.ndarray | None = None
    ordinals: np.ndarray | None = None

    @staticmethod
    def of_documents(tokens: np.ndarray, lengths: np.ndarray, **rest: Any) -> TokenChunk:
        """Of one field, whose documents have ``lengths`` ids (int64) and one sequence, or none, each."""
        return TokenChunk(
            tokens,
            [FieldSequences(len(tokens), lengths[lengths > 0], (lengths > 0).astype(np.int64))],
            **rest,
        )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Ids of each document of the first field, int64; the first may be the rest of an earlier one."""
        return np.diff(self.fields[0].begins)
