"""Points that scaling laws are fitted to: parameters, tokens, loss and compute of one run each.

They come from a CSV file with the columns ``params, tokens, loss`` (and ``budget``, ``depth``, ``outlier``, if it
likes) or from the result rows of a sweep (``results.py``). Anything that cannot be a point is named with its line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.json_files import read_bytes, without_controls
from automodel_cli.scaling.results import RESULTS_NAME, read_rows
from automodel_cli.text import plural

Convention = Literal["scaling", "non_embedding", "total"]
Metric = Literal["loss", "bpb"]

FLOPS_PER_PARAM_TOKEN = 6.0
"""Forward and backward: C = 6 N D (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
_SAME_BUDGET = 1.05  # ratio of two budgets that are still one: steps are whole
_WIDEST_BUDGET = 1.5  # a chain of such is no budget but a continuum
_HEADER = "the first line of a CSV names its columns: params, tokens, loss and, if you like, budget"
_LEAST, _MOST = 1e-30, 1e30
"""Of any number of a point: far beyond all that is meant, and its products stay within floating point."""
_EXPECTED = f"a number above 0 (and below {_MOST:.0e})"
MOST_POINTS = 10_000
"""A resample holds a number for each point, and there are a thousand of them."""
_EXTRAS = ("depth", "compute_s", "step_s", "mfu")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Points:
    """One entry a run in each array, ``[n]``, float64.

    Attributes:
        params, tokens, loss: N, D and L; ``loss`` is in nats, or in bits per byte where that was asked for.
        flops: compute of each run.
        group: number of its budget, -1 where its budget is its own.
        budgets: FLOPs of each group, ascending.
        extras: ``depth``, ``compute_s``, ``step_s`` and ``mfu`` where the rows have them, NaN where one does not.
        notes: what was left out, and why, for people.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray
    group: np.ndarray
    budgets: np.ndarray
    extras: Mapping[str, np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.params.size

    def with_loss(self, loss: np.ndarray) -> Points:
        """The same runs with other losses."""
        return replace(self, loss=loss)

    def only(self, which: np.ndarray) -> Points:
        """The runs where ``which`` ``[n]`` is true; budgets are found anew."""
        extras = {name: values[which] for name, values in self.extras.items()}
        return make_points(
            self.params[which], self.tokens[which], self.loss[which], self.flops[which], extras=extras, notes=self.notes
        )

    def of_budget(self, number: int) -> np.ndarray:
        """Which points belong to a budget, ``[n]`` bool."""
        return self.group == number


def make_points(
    params: Sequence[float] | np.ndarray,
    tokens: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    budget: Sequence[float] | np.ndarray | None = None,
    *,
    extras: Mapping[str, np.ndarray] | None = None,
    notes: Iterable[str] = (),
) -> Points:
    """Points from arrays; without a budget compute is 6 N D."""
    n, d = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    flops = FLOPS_PER_PARAM_TOKEN * n * d if budget is None else np.asarray(budget, dtype=float)
    group, budgets = _budgets(flops)
    losses = np.asarray(loss, dtype=float)
    return Points(n, d, losses, flops, group, budgets, extras or {}, tuple(notes))


def _budgets(flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute that is the same but for the rounding of steps is one budget: its number for each run, their FLOPs."""
    order = np.argsort(flops, kind="stable")
    starts = np.diff(np.log(flops[order]), prepend=-np.inf) > math.log(_SAME_BUDGET)
    group = np.full(flops.size, -1)
    budgets: list[float] = []
    for members in np.split(order, np.flatnonzero(starts)[1:]):
        if members.size > 1 and flops[members].max() <= _WIDEST_BUDGET * flops[members].min():
            group[members] = len(budgets)
            budgets.append(float(np.median(flops[members])))
    return group, np.array(budgets)


# ---------------------------------------------------------------------------------------------- from files


def read_points(
    path: Path, *, params: Convention = "scaling", metric: Metric = "loss", where: Sequence[str] = ()
) -> Points:
    """The points in a CSV file, in a ``results.jsonl`` or in the folder of a sweep.

    Args:
        params: which count of parameters is N, where rows have several.
        metric: which loss is L.
        where: conditions ``column=value`` that a row must meet.

    Raises:
        DataError: there is no such file, a column is missing, or a row holds something that cannot be a point.
    """
    source = path / RESULTS_NAME if path.is_dir() else path
    rows, notes = _result_rows(source) if source.suffix == ".jsonl" else _csv_rows(source)
    conditions = _conditions(rows.values(), where, source) if where else []
    kept = {line: row for line, row in rows.items() if all(str(row.get(name)) == value for name, value in conditions)}
    if where and len(kept) < len(rows):
        notes.append(f"{plural(len(rows) - len(kept), 'row')} left out by --where")
    used = {line: row for line, row in kept.items() if not _is_outlier(row)}
    if len(used) < len(kept):
        notes.append(f"{plural(len(kept) - len(used), 'row')} left out: marked as outlier")
    if source.suffix == ".jsonl":
        notes += _note_on_recipes(used.values())
    return _points_of(used, source, params, metric, notes)


def _result_rows(path: Path) -> tuple[dict[int, Row], list[str]]:
    found = read_rows(path)
    failed = sum(row.status == "failed" for row in found.values())
    notes = [f"{plural(failed, 'run')} left out: failed"] if failed else []
    finished = {line: row for line, row in found.items() if row.status == "finished"}
    return {line: _with_budget(row.model_dump(exclude_none=True)) for line, row in finished.items()}, notes


def _note_on_recipes(rows: Iterable[Row]) -> list[str]:
    recipes = sorted({str(row["recipe"]) for row in rows if row.get("recipe")})
    if len(recipes) < 2:
        return []
    return [
        f"the runs are of {len(recipes)} recipes (the base or what a sweep sets in all runs was changed), and one law "
        f"does not hold for all: --where recipe=NAME takes one of {', '.join(map(without_controls, recipes))}"
    ]


def _with_budget(row: Row) -> Row:
    """A row with the compute it had, where it was planned for another horizon."""
    if "budget" in row or not {"flops_per_token", "tokens"} <= row.keys():
        return row
    return {**row, "budget": row["flops_per_token"] * row["tokens"]}


def _csv_rows(path: Path) -> tuple[dict[int, Row], list[str]]:
    hint = "name a CSV file of points, or the folder of a sweep (it holds results.jsonl)"
    try:
        text = read_bytes(path, hint=hint).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows = dict(_numbered(reader, path))
    except (csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path} is not a CSV file in UTF-8: {without_controls(str(problem))}", hint) from None
    if not rows:
        raise DataError(f"{path} has no rows, expected a header and one row a run", _HEADER)
    return rows, []


def _numbered(reader: csv.DictReader[str], path: Path) -> Iterator[tuple[int, Row]]:
    """Rows that are not empty, with their lines.

    Raises:
        DataError: a column is there twice, or a row is longer than the header, as decimal commas make it.
    """
    columns = [str(name).strip() for name in reader.fieldnames or ()]
    if double := [name for name in columns if name and columns.count(name) > 1]:
        raise DataError(f"{path} has the column {without_controls(double[0])} twice", "keep one of them")
    for row in reader:
        beyond = row.pop(None, ())  # type: ignore[call-overload]
        if any(beyond):
            values = len(columns) + len(beyond)
            raise DataError(
                f"{path}, line {reader.line_num}: {values} values in {plural(len(columns), 'column')}",
                "separate values by commas, and write numbers with a decimal point and no other separators",
            )
        if any(row.values()):
            yield reader.line_num, {str(name).strip(): value for name, value in row.items()}


def _conditions(rows: Iterable[Row], where: Sequence[str], source: Path) -> list[tuple[str, str]]:
    """Columns and the values that they must have."""
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    for condition in where:
        if "=" not in condition or condition.partition("=")[0] not in columns:
            raise DataError(
                f"--where {condition}: expected COLUMN=VALUE, with a column of {source}",
                f"its columns are {without_controls(', '.join(columns))}",
            )
    return [(condition.partition("=")[0], condition.partition("=")[2]) for condition in where]


def _is_outlier(row: Row) -> bool:
    return str(row.get("outlier") or "").strip().lower() in ("true", "1", "yes")


def _points_of(
    rows: Mapping[int, Row], source: Path, convention: Convention, metric: Metric, notes: list[str]
) -> Points:
    if not rows:
        raise DataError(f"{source}: no point is left", "; ".join(notes) or "one row a run is needed")
    if len(rows) > MOST_POINTS:
        raise DataError(
            f"{source} has {len(rows):,} points, at most {MOST_POINTS:,} are fitted", "use some, by --where"
        )
    first = next(iter(rows.values()))
    names = {
        "params": _column(first, (f"params_{convention}", "params"), source),
        "tokens": _column(first, ("tokens",), source),
        "loss": _column(first, (f"val_{metric}", metric), source),
    }
    if "budget" in first:
        names["budget"] = "budget"
    values, problems = _numbers(rows, names)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(
            f"{source}, {problems[0]}{more}",
            "mend the row, delete it, or mark it with a column outlier (true)",
        )
    made = {name: np.array([row[name] for row in values]) for name in names}
    return make_points(**made, extras=_extras(list(rows.values())), notes=notes)


def _column(row: Row, names: Sequence[str], source: Path) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        columns = ", ".join(without_controls(str(key)) for key in row)
        hint = _HEADER if len(row) > 1 else f"{_HEADER}, separated by commas"
        raise DataError(f"{source} has no column {' or '.join(names)}; it has {columns}", hint)
    return found


def _numbers(rows: Mapping[int, Row], names: Mapping[str, str]) -> tuple[list[dict[str, float]], list[str]]:
    """Each row's numbers, and a sentence for each value that is none."""
    found: list[dict[str, float]] = []
    problems = []
    for line, row in rows.items():
        numbers = {name: _number(row.get(column)) for name, column in names.items()}
        bad = [names[name] for name, value in numbers.items() if not _LEAST < value < _MOST]
        problems += [f"line {line}: {column} is {_shown(row.get(column))}, expected {_EXPECTED}" for column in bad]
        found.append(numbers)
    return found, problems


def _number(value: Any) -> float:
    """NaN for what is none; ``1_0`` is one in Python only."""
    try:
        return math.nan if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError):
        return math.nan


def _shown(value: Any) -> str:
    return "missing" if value in (None, "") else without_controls(repr(value))[:60]


def _extras(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in _EXTRAS}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}
