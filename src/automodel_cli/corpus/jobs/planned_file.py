"""A token file that tasks will make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlannedFile:
    """A token file that is to be made, and its index, which is there.

    Attributes:
        name, index_name: in the output folder.
        first, tokens: its ids are so many from number ``first`` on of those that the ranges give.
    """

    name: str
    index_name: str
    ranges: Path
    index: Path
    first: int
    tokens: int
