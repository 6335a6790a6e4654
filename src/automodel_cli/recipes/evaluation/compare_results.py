"""Two results files, read and compared."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.evaluation.compare import Comparison, Results, compare
from automodel_cli.json_files import read_model

_HINT = "name two files that automodel eval wrote"


def run(a: Path, b: Path) -> Comparison:
    """What differs between two results files of ``automodel eval``.

    Raises:
        DataError: a file is missing or is no results file, or they have nothing in common.
    """
    return compare(read_model(a, Results, hint=_HINT), read_model(b, Results, hint=_HINT))
