"""Whether two models differ, from their results files.

Two runs over the same questions are compared question by question: those that only one of them got right decide
(McNemar's exact test), which sees differences that two error bars side by side do not. Where the questions differ
(other data, another number, other worked examples), the two accuracies are compared as independent samples. p is
the probability of a difference at least this large if the models were equally good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, Items

_SAME = ("version", "data", "shots", "count")
_EXACT_UP_TO = 2000  # questions that only one got right; beyond, the normal distribution is as good


Entry = TypeVar("Entry")
_Number = FiniteFloat | None  # null: it was not finite, or is not known


class _Checkpoint(FileModel):
    path: str
    fingerprint: str
    weights: str | None = None  # ema: the average that the checkpoint holds


class _Set(FileModel):
    data: str
    loss: _Number
    bits_per_byte: _Number = None


class _Task(FileModel):
    """``correct`` has a 0 or 1 for each question."""

    version: str
    data: str
    shots: Count
    count: Annotated[Count, Field(gt=0)]
    accuracy: FiniteFloat
    stderr: _Number
    correct: Annotated[str, Field(pattern="^[01]*$")]

    @model_validator(mode="after")
    def _one_answer_a_question(self) -> Self:
        if len(self.correct) != self.count:
            raise ValueError(f"expected {self.count} answers, one for each question")
        return self


class _Mean(FileModel):
    tasks: Count
    of: Count
    score: _Number
    stderr: _Number = None


class _Metric(FileModel):
    value: _Number
    stderr: _Number


class _Harness(FileModel):
    metrics: dict[str, _Metric]


class Results(FileModel):
    """What is compared of the results files of both kinds, those of earlier versions included."""

    format: Annotated[str, Field(pattern="^automodel-(results|task-results)/")]
    checkpoint: _Checkpoint
    settings: dict[str, Any] = Field(default_factory=dict)
    sets: Items[_Set] = ()
    tasks: dict[str, _Task] = Field(default_factory=dict)
    means: dict[str, _Mean] = Field(default_factory=dict)
    harness: dict[str, _Harness] = Field(default_factory=dict)
    judged: dict[str, _Harness] = Field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One score of both; ``stderr`` and ``p`` of B - A where they can be told; ``better`` whether B is."""

    name: str
    a: float
    b: float
    stderr: float | None = None
    p: float | None = None
    better: bool = False


@dataclass(frozen=True)
class Comparison:
    """All scores that both files have, whose they are, and what to know when reading them."""

    a: str
    b: str
    rows: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(a: Results, b: Results) -> Comparison:
    """Compare the content of two results files of ``automodel eval``.

    Raises:
        DataError: they have no score in common.
    """
    notes: list[str] = []
    rows = [*_sets(a, b), *_tasks(a, b, notes), *_means(a, b, notes), *_harness(a, b)]
    if not rows:
        raise DataError("the two files have no score in common", "evaluate both on the same tasks or token files")
    for key in ("precision", "context"):
        first, second = a.settings.get(key), b.settings.get(key)
        if first != second:
            notes.append(f"{key}: A {first}, B {second}")
    if a.checkpoint.fingerprint == b.checkpoint.fingerprint:
        notes.append("both are results of the same weights")
    return Comparison(_name(a), _name(b), tuple(rows), tuple(notes))


def _name(results: Results) -> str:
    return f"{results.checkpoint.path} ({results.checkpoint.fingerprint})"


def _common(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> Iterator[tuple[str, Entry, Entry]]:
    return ((name, first[name], second[name]) for name in first if name in second)


def _sets(a: Results, b: Results) -> list[Difference]:
    """Losses on token files; lower is better, and how they vary is not in the file."""
    others = {entry.data: entry.loss for entry in b.sets}
    return [
        Difference(f"loss {entry.data}", entry.loss, other)
        for entry in a.sets
        if entry.loss is not None and (other := others.get(entry.data)) is not None
    ]


def _tasks(a: Results, b: Results, notes: list[str]) -> list[Difference]:
    rows = []
    unequal: dict[str, list[str]] = {}
    for name, first, second in _common(a.tasks, b.tasks):
        other = [key for key in _SAME if getattr(first, key) != getattr(second, key)]
        if other:
            unequal.setdefault(", ".join(other), []).append(name)
            rows.append(_independent(name, first.accuracy, first.stderr, second.accuracy, second.stderr))
        else:
            rows.append(_paired(name, first, second))
    notes += [f"not the same questions ({what} differ): {', '.join(names)}" for what, names in unequal.items()]
    return rows


def _paired(name: str, a: _Task, b: _Task) -> Difference:
    """McNemar's exact test, and the standard error of the difference of paired answers."""
    only_a, only_b = discordant(a.correct, b.correct)
    count = len(a.correct)
    mean = (only_b - only_a) / count
    variance = (only_a + only_b) / count - mean**2
    stderr = math.sqrt(variance / (count - 1)) if count > 1 else None
    return Difference(name, a.accuracy, b.accuracy, stderr, mcnemar(only_a, only_b), only_b > only_a)


def discordant(a: str, b: str) -> tuple[int, int]:
    """How many questions only A, and only B, got right; ``a`` and ``b`` are strings of 0 and 1."""
    pairs = list(zip(a, b, strict=True))
    return pairs.count(("1", "0")), pairs.count(("0", "1"))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p: were both equally good, each of these questions would be a toss of a fair coin."""
    total, smaller = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    if total > _EXACT_UP_TO:
        return two_sided((abs(only_a - only_b) - 1) / math.sqrt(total))
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(smaller + 1)) / 2**total)


def two_sided(z: float) -> float:
    """The probability that a standard normal variable is at least ``z`` away from 0."""
    return math.erfc(abs(z) / math.sqrt(2))


def _independent(name: str, a: float, error_a: float | None, b: float, error_b: float | None) -> Difference:
    if error_a is None or error_b is None:
        return Difference(name, a, b)
    stderr = math.hypot(error_a, error_b)
    p = two_sided((b - a) / stderr) if stderr else None
    return Difference(name, a, b, stderr, p, b > a)


def _means(a: Results, b: Results, notes: list[str]) -> list[Difference]:
    """CORE and the Gauntlet, as independent samples: cautious, because the same questions vary together."""
    rows = []
    for name, first, second in _common(a.means, b.means):
        if (first.tasks, first.of) != (second.tasks, second.of):
            notes.append(f"{name}: A is over {first.tasks} tasks, B over {second.tasks}: not comparable")
        elif first.score is not None and second.score is not None:
            rows.append(_independent(name, first.score, first.stderr, second.score, second.stderr))
    return rows


def _harness(a: Results, b: Results) -> list[Difference]:
    return [
        _independent(f"{name} {metric}", one.value, one.stderr, other.value, other.stderr)
        for one_kind, other_kind in ((a.harness, b.harness), (a.judged, b.judged))
        for name, first, second in _common(one_kind, other_kind)
        for metric, one, other in _common(first.metrics, second.metrics)
        if one.value is not None and other.value is not None
    ]
