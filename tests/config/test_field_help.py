"""Docstrings as help: the meaning, and the default in words."""

from __future__ import annotations

import pytest

from automodel_cli.config.field_help import meaning_and_default
from automodel_cli.config.schema.base import Section


class Example(Section):
    """For the test."""

    needed: str
    """A name."""
    limit: int | None = None
    """Rows to read; 0: none; null: all."""
    place: str | None = None
    """Folder. It is made; null: `rows.json` in `folder` (or above). More below."""
    names: tuple[str, ...] = ()
    """Names; empty: those of the file."""
    kept: int | None = 5
    """Files; null: all."""
    memory: int = 500_000_000
    """Bytes."""
    cut: int = 256 << 20
    """Bytes."""
    rate: float = 60.0
    """Per second."""
    on: bool = True
    """Do it."""
    off: bool = False
    """Do it too."""


@pytest.mark.parametrize(
    ("name", "meaning", "default"),
    [
        ("needed", "A name.", ""),
        ("limit", "Rows to read; 0: none.", "all"),
        ("place", "Folder. It is made. More below.", "`rows.json` in `folder` (or above)"),
        ("names", "Names.", "those of the file"),
        ("kept", "Files; null: all.", "5"),
        ("memory", "Bytes.", "500M"),
        ("cut", "Bytes.", "256MiB"),
        ("rate", "Per second.", "60"),
        ("on", "Do it.", "true"),
        ("off", "Do it too.", ""),
    ],
)
def test_meaning_and_default(name, meaning, default):
    assert meaning_and_default(Example, name) == (meaning, default)
