"""A step folder becomes visible: renamed once it is finished, tidied where a killed writer left one. No torch."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.errors import AutomodelError, CheckpointError


def publish_step(temporary: Path, target: Path) -> None:
    """Give a finished temporary folder its name; a step already there is renamed away and goes after."""
    aside = target.with_name(target.name + layout.REPLACED)
    if target.exists():
        if aside.exists():
            shutil.rmtree(aside)
        target.replace(aside)
    files.publish(temporary, target)
    shutil.rmtree(aside, ignore_errors=True)


def remove_stale(run: Path | str) -> None:
    """Tidy up after a killed writer: temporary folders go, a replaced step without successor returns."""
    for path in sorted(Path(run).iterdir()) if Path(run).is_dir() else []:
        stem, suffix = path.name.partition(".")[0], path.suffix
        if layout.step_of(stem) is None or path.name != stem + suffix or not path.is_dir():
            continue
        successor, is_replaced = path.with_name(stem), suffix == layout.REPLACED
        if is_replaced and layout.is_complete(path) and not layout.is_complete(successor):
            shutil.rmtree(successor, ignore_errors=True)
            files.publish(path, successor)
        elif suffix in (layout.TEMPORARY, layout.REPLACED, layout.DELETED):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def discarding(temporary: Path) -> Iterator[None]:
    """On a failure the temporary folder goes."""
    try:
        yield
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def error_context(temporary: Path) -> Iterator[None]:
    """A disk error while a step is written says which file, what to do, and what is intact."""
    try:
        yield
    except (OSError, AutomodelError) as error:
        if isinstance(error, CheckpointError):
            raise
        previous = layout.newest_good(temporary.parent)
        intact = f"{previous.name} is intact" if previous else "there is no earlier checkpoint"
        what = f"{error.filename or temporary}: {error.strerror}" if isinstance(error, OSError) else error.message
        raise CheckpointError(
            f"could not save {temporary.name.removesuffix(files.TEMP_SUFFIX).removesuffix(layout.TEMPORARY)}: {what}",
            f"free some space or repair the disk, then start again; {intact}",
        ) from error
