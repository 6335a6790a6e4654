"""Records as columns that grow: one array of doubles a numeric key, ordered by step.

A key that holds numbers by name, ``{"loss_by_source": {"books": 3.1}}``, is one column a name:
``loss_by_source/books``. What is no number is NaN, as in ``metrics.read.to_columns``, to which a table is equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any

import numpy as np

TIME = "time"
_MOST_COLUMNS = 400  # more are no metrics
_MOST_KEYS = 500  # of the records of one block: each is looked up in each of them
_LONGEST_NAME = 200
_FIRST_ROWS = 16  # little, for there may be many tables of few rows
_PLAIN = {int, float, bool, type(None)}
Records = Sequence[Mapping[str, Any]]


class Table:
    """Rows of one kind of record.

    Attributes:
        rows: how many there are.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._capacity = 0
        self._steps = np.empty(0, dtype=np.int64)
        self._columns: dict[str, np.ndarray] = {}

    @property
    def names(self) -> list[str]:
        """The columns but ``step``, in the order in which they came."""
        return list(self._columns)

    @property
    def step(self) -> np.ndarray:
        """Steps, int64, each greater than the one before."""
        return self._steps[: self.rows]

    def column(self, name: str) -> np.ndarray:
        """Values of a column, float64; NaN throughout where there is no such column."""
        found = self._columns.get(name)
        return np.full(self.rows, np.nan) if found is None else found[: self.rows]

    def append(self, records: Records) -> bool:
        """Add rows; the last record of a step counts. False: earlier rows have changed with that."""
        if not records:
            return True
        steps = np.array([record["step"] for record in records], dtype=np.int64)
        columns = _columns_of(records)
        known = self.rows
        self._extend(steps, columns)
        added = self._steps[max(known - 1, 0) : self.rows]
        if (np.diff(added) > 0).all():
            return True
        self._sort()
        return False

    def _extend(self, steps: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        first, self.rows = self.rows, self.rows + len(steps)
        if self.rows > self._capacity:
            self._capacity = max(_FIRST_ROWS, 2 * self.rows)
            steps_before, self._steps = self._steps, np.empty(self._capacity, dtype=np.int64)
            self._steps[:first] = steps_before[:first]
            self._columns = {name: self._grown(column, first) for name, column in self._columns.items()}
        self._steps[first : self.rows] = steps
        for name, column in self._columns.items():
            column[first : self.rows] = columns.get(name, np.nan)
        for name in [name for name in columns if name not in self._columns][: _MOST_COLUMNS - len(self._columns)]:
            self._columns[name] = self._grown(np.empty(0), 0)
            self._columns[name][first : self.rows] = columns[name]

    def _grown(self, column: np.ndarray, rows: int) -> np.ndarray:
        grown = np.full(self._capacity, np.nan)
        grown[:rows] = column[:rows]
        return grown

    def _sort(self) -> None:
        backwards = self.step[::-1]
        _, places = np.unique(backwards, return_index=True)  # the first from behind
        kept = self.rows - 1 - places
        self.rows = len(kept)
        self._steps[: self.rows] = self._steps[kept]
        for column in self._columns.values():
            column[: self.rows] = column[kept]


def _columns_of(records: Records) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for name in islice(dict.fromkeys(chain.from_iterable(records)), _MOST_KEYS):
        if len(columns) >= 2 * _MOST_COLUMNS:
            break
        values = [record.get(name) for record in records]
        kinds = set(map(type, values))
        if name == TIME:
            columns[name] = np.array([seconds(value) for value in values])
        elif dict in kinds:
            columns.update(_nested(name, values))
        elif name != "step" and len(name) <= _LONGEST_NAME and kinds & {int, float, bool}:
            columns[name] = _numbers(values, kinds)
    return columns


def _numbers(values: Sequence[Any], kinds: Iterable[type]) -> np.ndarray:
    if set(kinds) <= _PLAIN:
        try:
            return np.array(values, dtype=np.float64)  # None is NaN
        except OverflowError:
            pass
    return np.array([as_float(value) for value in values])


def _nested(name: str, values: Sequence[Any]) -> dict[str, np.ndarray]:
    inner = [value if isinstance(value, dict) else {} for value in values]
    names = [key for key in dict.fromkeys(chain.from_iterable(inner)) if isinstance(key, str)][:_MOST_COLUMNS]
    found = {f"{name}/{key}": [one.get(key) for one in inner] for key in names}
    return {
        full: _numbers(column, set(map(type, column)))
        for full, column in found.items()
        if len(full) <= _LONGEST_NAME and any(isinstance(value, int | float) for value in column)
    }


def as_float(value: Any) -> float:
    """A number as a double; NaN for what is none, and for whole numbers of hundreds of digits."""
    try:
        return float(value) if isinstance(value, int | float) else float("nan")
    except OverflowError:
        return float("nan")


def seconds(value: Any) -> float:
    """A ``time`` of a record as seconds since 1970; NaN for what is none."""
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return float("nan")
