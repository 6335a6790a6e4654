"""The pieces of work that pass between reader, workers and writer. All of them can be pickled.

A ``Unit`` says what to read, a ``Texts`` is what was read, a ``TokenChunk`` what became of it. Where one unit
ends and the next begins changes with the chunk size; the documents, their order and their bytes do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["jsonl", "line", "delimited", "files", "piece", "parquet", "rows", "values", "bad"]
Split = Literal["train", "val"]


@dataclass(frozen=True)
class ReadOptions:
    """How text is found in rows and files."""

    text_key: str = "text"
    document: str = "file"  # "file", "line" or a delimiter


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
        continues, unfinished: the first document began in the unit before; the last goes on in the next.
        split: the split that a tail cut chose, else None.
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
    continues: bool = False
    unfinished: bool = False
    split: Split | None = None


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
    """Documents of one unit; ``rows`` counts every row that was looked at, bad ones too."""

    texts: list[str]
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def add(self, row: int, text: str | BadRow, name: str | None = None) -> None:
        """Take in a document, or note that row number ``row`` has none."""
        if isinstance(text, BadRow):
            self.bad.append(BadRow(row, text.reason, name, after=len(self.texts)))
        else:
            self.texts.append(text)


@dataclass
class TokenChunk:
    """Token ids of one unit, end-of-text included.

    Attributes:
        tokens: all ids, one document after another.
        lengths: ids of each document, int64; the first one is the rest of an earlier one if ``continues``.
        ordinals: document numbers, if they are not simply the next ones (after a shuffle).
        text_bytes: UTF-8 bytes of input.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    continues: bool = False
    unfinished: bool = False
    split: Split | None = None
    ordinals: np.ndarray | None = None
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    text_bytes: int = 0
