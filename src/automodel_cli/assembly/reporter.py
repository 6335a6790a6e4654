"""How a recipe speaks: four callables that the command line (or a notebook) hands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from automodel_cli.metrics.lines import WIDTH

Rows = Sequence[tuple[str, str]]
Columns = Sequence[Sequence[str]]


def _silent(*_: object) -> None:
    """Says nothing: what a script gets that asks for no output."""


@dataclass(frozen=True)
class Reporter:
    """``say`` one line; ``table`` a title and (name, value) rows; ``progress`` (done, total, what).

    ``columns``: a title, headings, and rows of as many cells. ``width``: of a line of numbers, in characters.
    """

    say: Callable[[str], None] = _silent
    table: Callable[[str, Rows], None] = _silent
    progress: Callable[[int, int, str], None] = _silent
    columns: Callable[[str, Sequence[str], Columns], None] = _silent
    width: Callable[[], int] = lambda: WIDTH
