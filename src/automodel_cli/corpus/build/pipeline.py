"""The road from a source to a sink: units out, token chunks back in order, a journal on the way.

1. the source cuts itself into units (``documents``, ``cutting``, ``hub``)
2. workers turn units into token buffers (``tokenize``, ``pool``), in this process if there is only one
3. chunks reach a sink in source order (``corpus_writer``, ``megatron_sink``), until it is full
4. between two chunks, when a shard was finished, the position is written down
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from automodel_cli.corpus.documents.units import BadRow, TokenChunk, Unit
from automodel_cli.corpus.formats.journal import EVERY_TOKENS
from automodel_cli.errors import DataError

FIRST_BAD_ROWS = 10  # named; the rest are counted


class Sink(Protocol):
    """Where token chunks go, in order."""

    @property
    def tokens(self) -> int:
        """Tokens taken so far."""
        ...

    @property
    def documents(self) -> int:
        """Documents taken so far."""
        ...

    @property
    def full(self) -> bool:
        """Whether it wants no more."""
        ...

    @property
    def reached(self) -> int:
        """Documents of the last chunk up to the last one of which something was taken."""
        ...

    def feed(self, chunk: TokenChunk) -> bool:
        """Take a chunk; True if something was published, so that the position is worth writing down."""
        ...

    def sync(self) -> dict[str, Any]:
        """Make all durable and say (in JSON) how to go on from here."""
        ...

    def abandon(self) -> None:
        """After an error: leave what the last ``sync`` made durable."""
        ...


@dataclass(frozen=True)
class Progress:
    """What has been done so far, for bars and lines; ``*_wanted`` are None where nobody knows.

    ``through`` is the part of the input that was read, 0 to 1.
    """

    phase: str
    documents: int
    tokens: int
    text_bytes: int
    bad_rows: int
    tokens_wanted: int | None = None
    bytes_wanted: int | None = None
    through: float | None = None


class NoText(DataError):
    """The source holds nothing to write, so there is nothing to go on from either."""


@dataclass
class BadRows:
    """Rows without usable text: how many, and the first ones by file and line."""

    strict: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)

    def saved(self) -> dict[str, Any]:
        """For a journal."""
        return {"count": self.count, "first": self.first}

    def in_words(self) -> str:
        """``5 bad rows; first: a.jsonl:3: malformed JSON``."""
        return f"{self.count:,} bad rows" + (f"; first: {self.first[0]}" if self.first else "")

    def add(self, unit: Unit, rows_before: int, bad: list[BadRow]) -> None:
        """Count; ``rows_before`` is the number of rows of this file in earlier units.

        Raises:
            DataError: in strict mode, at the first one.
        """
        for row in bad:
            place = row.name or f"{unit.name}:{rows_before + row.row + 1}"
            if self.strict:
                raise DataError(f"bad row {place}: {row.reason}", "repair it, or go on without --strict")
            self.count += 1
            if len(self.first) < FIRST_BAD_ROWS:
                self.first.append(f"{place}: {row.reason}")


def run_pipeline(
    chunks: Iterator[tuple[Unit, TokenChunk]],
    sink: Sink,
    bad_rows: BadRows,
    *,
    rows: int = 0,
    note: Callable[[dict[str, Any], int], None],
    on_progress: Callable[[int, float | None], None],
) -> None:
    """Feed ``sink`` until it is full or there is no more.

    Args:
        rows: rows of the first unit's file before that unit (after an interruption).
        note: called with the cursor and rows to go on from, when that is worth writing down.
        on_progress: called after each chunk with the bytes of text it stood for and ``Unit.through``, and at the end.
    """
    file = None
    noted_at = sink.tokens
    worth_noting = False
    for unit, chunk in chunks:
        rows = rows if file in (None, unit.file) else 0
        file = unit.file
        if worth_noting or sink.tokens - noted_at >= EVERY_TOKENS:
            note(unit.cursor, rows)
            noted_at, worth_noting = sink.tokens, False
        if unit.ordinals is not None:
            chunk.ordinals = unit.ordinals[chunk.numbers]
        worth_noting |= sink.feed(chunk)
        # Rows after the last document that was wanted do not count: how many are read of them is chance.
        bad_rows.add(unit, rows, [row for row in chunk.bad if not sink.full or row.after < sink.reached])
        rows += chunk.rows
        on_progress(chunk.text_bytes, unit.through)
        if sink.full:
            return
    on_progress(0, 1.0)
