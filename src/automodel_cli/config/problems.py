"""Problems with a configuration: collected first, then reported all together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it was written, the key, and what was found and expected."""

    where: str
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.text) if part)


def raise_problems(problems: Sequence[Problem], *, hint: str = "") -> None:
    """Raise one ConfigError that names every problem once; do nothing if there is none."""
    lines = list(dict.fromkeys(str(problem) for problem in sorted(problems, key=_place)))
    if not lines:
        return
    message = lines[0] if len(lines) == 1 else f"{len(lines)} problems:\n  " + "\n  ".join(lines)
    raise ConfigError(message, hint)


def _place(problem: Problem) -> tuple[bool, str, int]:
    """Files before the command line, and each file from top to bottom."""
    file, _, line = problem.where.rpartition(":")
    return (not line.isdigit(), file, int(line)) if line.isdigit() else (True, "", 0)


def folded(name: str) -> str:
    """A name without regard to case, dashes and underscores."""
    return name.lower().replace("-", "_")


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` was probably meant to be, if one is near enough."""
    candidates = {folded(candidate): candidate for candidate in known}
    wanted = folded(name)
    if wanted in candidates:
        return candidates[wanted]
    if matches := difflib.get_close_matches(wanted, candidates, n=1, cutoff=cutoff):
        return candidates[matches[0]]
    holding = [candidate for candidate in candidates if wanted in candidate.split("_")]  # max -> max_norm
    return candidates[holding[0]] if len(holding) == 1 else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``", did you mean X?"``, or nothing where no known name is near."""
    match = nearest(name, known)
    return f", did you mean {match}?" if match else ""
