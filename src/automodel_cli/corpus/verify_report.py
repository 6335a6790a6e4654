"""What ``preprocess verify`` found, whichever kind of token files it looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileReport:
    """One token file as it was found."""

    name: str
    layout: str
    dtype: str
    tokens: int
    documents: int | None
    largest_id: int


@dataclass
class VerifyReport:
    """What was found; the corpus is sound if ``problems`` is empty. Each problem names its file."""

    path: Path
    manifest: Any = None
    files: list[FileReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    documents: list[tuple[str, str]] = field(default_factory=list)  # (file, text)
    hashed: int = 0
