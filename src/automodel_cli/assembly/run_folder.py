"""Moving an earlier run out of the run folder, for a fresh start."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.files import fsync_folder

LOCK_NAME = ".lock"


def move_aside(folder: Path) -> Path | None:
    """Move all that is in ``folder`` (but the lock) to ``folder.old-N``; None where it was empty. Deletes nothing."""
    content = [item for item in sorted(folder.iterdir()) if item.name != LOCK_NAME]
    if not content:
        return None
    target = _unused(folder)
    target.mkdir()
    for item in content:
        item.rename(target / item.name)
    fsync_folder(folder)
    return target


def _unused(folder: Path) -> Path:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return target
