"""Run folders inside one another (``checkpoints/`` and ``checkpoints/NAME``): what belongs to which. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from automodel_cli import files
from automodel_cli.checkpoint import layout, lineage
from automodel_cli.checkpoint.run_files import CONFIG_NAME
from automodel_cli.errors import CheckpointError
from automodel_cli.metrics.log_file import METRICS_NAME, SUPERSEDED_NAME
from automodel_cli.metrics.trackers import own_files

_DEPTH = 3
_MOST_FOLDERS = 1000  # on a level; more are no runs
_SHOWN = 6
# What a run writes into its folder, and the reports on it: docs/formats.md. The rest is somebody else's.
_FILES = (*layout.POINTERS, CONFIG_NAME, METRICS_NAME, SUPERSEDED_NAME, *own_files.RUN_FILES.values(), lineage.NAME)
_NAMES = "|".join(map(re.escape, _FILES))
_OWN = re.compile(
    rf"({_NAMES}|results(_[\w.+-]+)?\.json|(curves|report)\w*\.\w+){files.ANY_TEMPORARY}"
    rf"|step_\d{{8,}}(\.\w+)?|profile|{'|'.join(own_files.FOLDERS)}"
)


def is_run(folder: Path) -> bool:
    """Whether a run was started in ``folder`` itself."""
    begun = (folder / layout.LOCK_NAME).exists() and (folder / CONFIG_NAME).exists()
    logged = any((folder / name).exists() for name in ("LATEST", METRICS_NAME))
    return begun or logged or bool(layout.list_steps(folder, complete=False))


def is_training(folder: Path) -> bool:
    """Whether a process holds ``folder``, or its lock is not ours to look at."""
    return files.is_locked(folder / layout.LOCK_NAME)


def runs_below(folder: Path) -> list[Path]:
    """Folders below, three levels deep, that hold runs; steps, profiles and the like are not looked into."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH):
        level = [inner for outer in level for inner in _folders(outer)][:_MOST_FOLDERS]
        found += filter(_holds_run, level)
    return sorted(found)


def _holds_run(folder: Path) -> bool:
    try:
        return is_run(folder) or is_training(folder)
    except OSError:  # one that is not ours to read, lost+found say, must not hide those beside it
        return False


def _folders(folder: Path) -> list[Path]:
    try:
        inside = [one for one in sorted(folder.iterdir()) if not _OWN.fullmatch(one.name)]
        return [one for one in inside if one.is_dir() and not one.is_symlink()]
    except OSError:  # not there, or not ours to read
        return []


def run_above(folder: Path) -> Path | None:
    """The nearest folder above, up to three levels, that holds a run."""
    return next((one for one in folder.absolute().parents[:_DEPTH] if is_run(one)), None)


def files_of_run(folder: Path) -> list[Path]:
    """What in ``folder`` belongs to its own run (but the lock): neither other runs nor files of others.

    Raises:
        CheckpointError: a folder with a name of ours holds another run.
    """
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    own = [path for path in inside if _OWN.fullmatch(path.name)]
    for path in filter(Path.is_dir, own):
        if other := next((one for one in (path, *runs_below(path)) if is_run(one) or is_training(one)), None):
            raise CheckpointError(
                f"{other} is a run of its own, inside of what {folder} would have moved",
                "move that run elsewhere, or take another checkpoint_dir",
            )
    return own


def notes(folder: Path) -> list[str]:
    """A line for runs below ``folder`` and for the one around it; none where it lies alone."""
    lines = []
    if others := runs_below(folder):
        lines.append(f"{folder} also holds other runs, which stay as they are: {names(others, folder)}")
    if (outer := run_above(folder)) is not None:
        lines.append(f"this run lies inside the folder of another one, {outer}")
    return lines


def names(runs: list[Path], folder: Path) -> str:
    """``small, big (training now)``, at most six."""
    shown = [f"{run.relative_to(folder)}{' (training now)' * is_training(run)}" for run in runs[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else "")


def way_down(folder: Path) -> str:
    """What to name instead of ``folder``, where it holds no run itself but others below; "" where there is none."""
    others = runs_below(folder)
    return f"runs below it: {names(others, folder)}; name one of them" if others else ""
