"""Two results files, read and compared."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.errors import DataError
from automodel_cli.evaluation.compare import Comparison, Results, compare
from automodel_cli.json_files import read_bytes, read_model

_HINT = "name two results files that automodel eval wrote (results_*.json)"


def run(a: Path, b: Path) -> Comparison:
    """What differs between two results files of ``automodel eval``.

    Raises:
        DataError: a file is missing or is no results file, or they have nothing in common.
    """
    return compare(_results(a), _results(b))


def _results(path: Path) -> Results:
    if not read_bytes(path, hint=_HINT).lstrip().startswith(b"{"):
        raise DataError(f"{path} is not a results file", _HINT)
    return read_model(path, Results, hint=_HINT)
