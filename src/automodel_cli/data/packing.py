"""Rows of different length put together into packs of one length, so that little of a batch is padding.

A **row** is what a data set yields, by the rules of ``collate``; what follows its last label is cut off, as no loss
depends on it. A **window** is so many consecutive rows of one epoch that their tokens fill ``WINDOW_PACKS`` packs; no
more is held in memory. The rows of a window are put into packs by best fit, the longest row first, each into the
fullest pack that has room for it; then come the packs in the order in which their longest rows were read (packs sorted
by length would make some updates of long rows only).

In a pack each row is a document of its own: positions count from 0, ``segment_ids`` differ, and labels are the row's
own, so none crosses into the next row. The rest of a pack is padding, with ignored labels and a segment of its own.

A row longer than a pack is left out, split into pieces as long as a pack, or refused: ``Packing.long_rows``.

Shapes: B packs, N = ``Packing.size`` tokens of a pack.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.collate import as_batch, collated_row, default_collate
from automodel_cli.errors import DataError

_log = logging.getLogger(__name__)

ALGORITHM = "best-fit-decreasing-1"
WINDOW_PACKS = 64
_WINDOW_ROWS = 65_536  # rows of a window, where they are very short or empty
_BARREN_WINDOWS = 3  # in turn without any pack: the end of an epoch may be one, then a whole epoch

Pack = Sequence["Row"]


@dataclass(frozen=True)
class Row:
    """The tokens of one row (or a piece of it), int64 ``[T]``; where a data set gives none, positions count from 0."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray | None = None
    segment_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> Row:
        known = {name: value[part] for name, value in vars(self).items() if value is not None}
        return Row(**known)


def row_of(item: Any, collate: Callable[[list[Any]], Any] | None = None) -> Row:
    """An item of a data set as a row, up to its last label; ``collate``, the user's own, is given this one item.

    Raises:
        DataError: as ``default_collate``, or ``collate`` makes other than one row of it.
    """
    if collate is None or collate is default_collate:
        row = Row(**collated_row(item))
    else:
        batch = as_batch(collate([item]))
        if len(batch.input_ids) != 1:
            raise DataError(
                f"the collate_fn made {len(batch.input_ids)} rows of one item",
                "leave collate_fn out, or set packed_sequence.packed_sequence_size to 0",
            )
        row = Row(**{name: value[0].numpy() for name, value in vars(batch).items() if value is not None})
    learned = np.flatnonzero(row.labels != IGNORE_INDEX)
    return row[: learned[-1] + 1 if len(learned) else 0]


@dataclass(frozen=True)
class Packing:
    """How rows are packed: ``size`` tokens a pack, and what becomes of longer rows."""

    size: int
    long_rows: Literal["drop", "split", "refuse"] = "drop"

    def plan(self) -> dict[str, Any]:
        """What decides which rows share a pack, for the plan of a loader."""
        return {**vars(self), "window_packs": WINDOW_PACKS, "order": ALGORITHM}

    @property
    def fate(self) -> str:
        """What becomes of longer rows, in words."""
        return "split" if self.long_rows == "split" else "left out"

    def warn_of_long_rows(self, end: Start, dataset: Any) -> None:
        """Say that rows up to ``end`` were longer than a pack; done once for a data set."""
        _log.warning(
            "%d of the first %d rows of %s have more than packed_sequence_size %d tokens: %s",
            *(end.long_rows, end.row, type(dataset).__name__, self.size, self.fate),
        )

    def pieces(self, row: Any, number: int) -> list[Any]:
        """What of row ``number`` goes into packs; ``row`` is a ``Row``, or anything with a length and slices.

        Raises:
            DataError: it is too long, and ``long_rows`` is "refuse".
        """
        if len(row) <= self.size:
            return [row] if len(row) else []
        if self.long_rows == "refuse":
            raise DataError(
                f"row {number:,} of the data has {len(row):,} tokens, packed_sequence_size is {self.size:,}",
                "raise packed_sequence_size, or set packed_sequence.drop_long_samples or split_across_pack to true",
            )
        begins = range(0, len(row), self.size) if self.long_rows == "split" else ()
        return [row[begin : begin + self.size] for begin in begins]


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Packs of at most ``size`` tokens, as numbers of rows in ascending order; every length is in 1..size.

    Best fit decreasing: at most 11/9 of the fewest packs possible, plus one (Johnson 1974).
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, number of the pack), ascending
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        at = bisect.bisect_left(rooms, (lengths[number], -1))
        room, pack = rooms.pop(at) if at < len(rooms) else (size, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(number)
        if room > lengths[number]:
            bisect.insort(rooms, (room - lengths[number], pack))
    return [sorted(pack) for pack in sorted(packs)]  # each begins with its longest row until here


# ----------------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Read:
    """A row as it was read; ``state`` is the data set's own just after it, where it was asked for."""

    epoch: int
    row: Any
    state: Any = None


@dataclass(frozen=True)
class Start:
    """Where a window begins: all that is needed to read it again.

    Attributes:
        row: rows read before it.
        long_rows: how many of those were longer than a pack.
        state, state_row: the last known own state of the data set, and the rows read before that.
    """

    row: int = 0
    long_rows: int = 0
    state: Any = None
    state_row: int = 0


@dataclass(frozen=True)
class Window:
    """The packs of consecutive rows of one epoch, from ``start`` to ``end``."""

    start: Start
    end: Start
    epoch: int
    packs: list[list[Any]]
    ends_epoch: bool  # as far as it is known; else the next window is of a later epoch


@dataclass
class _Filling:
    """A window that is being read."""

    start: Start
    epoch: int
    pieces: list[Any] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0

    def add(self, pieces: list[Any]) -> None:
        self.pieces += pieces
        self.rows += 1
        self.tokens += sum(map(len, pieces))

    def done(self, size: int, end: Start, *, ends_epoch: bool) -> Window:
        numbers = best_fit([len(piece) for piece in self.pieces], size)
        packs = [[self.pieces[n] for n in pack] for pack in numbers]
        return Window(self.start, end, self.epoch, packs, ends_epoch)


def windows(
    reads: Iterable[Read], packing: Packing, start: Start, *, rows_per_epoch: int | None = None
) -> Iterator[Window]:
    """The windows of ``reads``, whose first is the row after ``start``. Each ends with its epoch or when it is full.

    Raises:
        DataError: a row is refused, or nothing of many rows can be packed.
    """
    barren = 0
    for window in _windows(reads, packing, start, rows_per_epoch):
        barren = 0 if window.packs else barren + 1
        if barren == _BARREN_WINDOWS:
            raise nothing_to_pack(window.end)
        yield window


def _windows(reads: Iterable[Read], packing: Packing, here: Start, rows_per_epoch: int | None) -> Iterator[Window]:
    filling: _Filling | None = None
    for read in reads:
        if filling is not None and read.epoch != filling.epoch:
            yield filling.done(packing.size, here, ends_epoch=True)
            filling = None
        filling = filling or _Filling(here, read.epoch)
        filling.add(packing.pieces(read.row, here.row))
        here = replace(here, row=here.row + 1, long_rows=here.long_rows + (len(read.row) > packing.size))
        if read.state is not None:
            here = replace(here, state=read.state, state_row=here.row)
        full = filling.tokens >= WINDOW_PACKS * packing.size or filling.rows == _WINDOW_ROWS
        last = rows_per_epoch is not None and here.row % rows_per_epoch == 0
        if full or last:
            yield filling.done(packing.size, here, ends_epoch=last)
            filling = None
    if filling is not None:
        yield filling.done(packing.size, here, ends_epoch=True)


def nothing_to_pack(end: Start) -> DataError:
    """Of the rows up to ``end`` none can be packed, or none for long."""
    return DataError(
        f"none of the last rows of the data can be packed: of {end.row:,}, {end.long_rows:,} are longer than "
        "packed_sequence_size, the others have no label",
        "raise packed_sequence.packed_sequence_size, or look at what the data set yields",
    )


@dataclass(frozen=True)
class Packed:
    """What has come of packing: rows read, how many of them longer than a pack, packs, and tokens in them."""

    rows: int
    long_rows: int
    packs: int
    tokens: int

    def with_window(self, window: Window) -> Packed:
        """The sum with one window more."""
        packs, tokens = self.packs + len(window.packs), self.tokens + real_tokens(window.packs)
        return Packed(window.end.row, window.end.long_rows, packs, tokens)

    def in_words(self, packing: Packing) -> str:
        """For a table: ``812 packs of 4,096 tokens, 97.2% filled by 9,100 rows; 3 longer ones left out``."""
        share = self.tokens / max(1, self.packs * packing.size)
        rows = self.rows - (self.long_rows if packing.long_rows == "drop" else 0)
        text = f"{self.packs:,} packs of {packing.size:,} tokens, {share:.1%} filled by {rows:,} rows"
        return f"{text}; {self.long_rows:,} longer ones {packing.fate}" if self.long_rows else text


# ----------------------------------------------------------------------------------------- batches


def real_tokens(packs: Iterable[Pack]) -> int:
    """Tokens of rows in ``packs``; the others are padding."""
    return sum(len(row) for pack in packs for row in pack)


def batch_of_packs(packs: Sequence[Pack], size: int) -> Batch:
    """``packs`` as int64 ``[B, N]``, with positions and segments."""
    fields = [_fields(pack, size) for pack in packs]
    return Batch(*(torch.from_numpy(np.stack(rows)) for rows in zip(*fields, strict=True)))


def _fields(pack: Pack, size: int) -> tuple[np.ndarray, ...]:
    """Ids, labels, positions and segments of one pack, ``[N]`` each."""
    rest = size - real_tokens([pack])
    padding = Row(np.zeros(rest, dtype=np.int64), np.full(rest, IGNORE_INDEX, dtype=np.int64))
    filled = [*pack, *([padding] if rest else [])]
    segments, number = [], 0
    for row in filled:
        own = np.zeros(len(row), dtype=np.int64) if row.segment_ids is None else row.segment_ids
        segments.append(own - own.min() + number)
        number = int(segments[-1].max()) + 1
    positions = [np.arange(len(row)) if row.position_ids is None else row.position_ids for row in filled]
    return (
        np.concatenate([row.input_ids for row in filled]),
        np.concatenate([row.labels for row in filled]),
        np.concatenate(positions),
        np.concatenate(segments),
    )
