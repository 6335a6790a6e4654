"""Two results files, read and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from automodel_cli.errors import DataError
from automodel_cli.evaluation.compare import Comparison, compare


def run(a: Path, b: Path) -> Comparison:
    """What differs between two results files of ``automodel eval``.

    Raises:
        DataError: a file is missing or is no results file, or they have nothing in common.
    """
    return compare(_read(a), _read(b))


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "name two files that automodel eval wrote") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", "name two files that automodel eval wrote") from None
    if not isinstance(results, dict):
        raise DataError(f"{path} is no results file", "name two files that automodel eval wrote")
    return results
