"""Where a run's checkpoints lie, which of them to believe, and which may go. No torch.

    RUN/LATEST, RUN/BEST          text: "step_00001000 xxh3:<hash of that name>"; a bare name is accepted too
    RUN/step_00001000/            complete: it holds a manifest.json, which is written last
    RUN/step_00001000.tmp/        being written, or left by a killed save: never read
    RUN/step_00001000.replaced/   the earlier step of the same name, while a new one takes its place
    RUN/step_00001000.deleted/    on its way out

Reading changes nothing here; ``publishing`` and ``retention`` do, each change by one rename, so a process killed
at any instant leaves each step either whole or not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from automodel_cli import files
from automodel_cli.checkpoint.step_manifest import StepManifest
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import read_bytes, validated
from automodel_cli.plain_text import for_shell, without_controls

MANIFEST = "manifest.json"
FORMAT = "automodel-checkpoint/1"
POINTERS = ("LATEST", "BEST")
LOCK_NAME = ".lock"
TEMPORARY, REPLACED, DELETED = ".tmp", ".replaced", ".deleted"
_STEP_NAME = re.compile(r"step_(\d{8,})")
_MAX_POINTER_BYTES = 4096
_POINTER_LINE = re.compile(r"(step_\d{8,})(?: (xxh3:[0-9a-f]{16}))?\n?")

Say = Callable[[str], None]


def step_name(step: int) -> str:
    """``step_00001000``: eight digits at least, so that names sort like numbers."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder name means, or None when it is no step folder (a temporary one, say)."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def step_folder(run: Path | str, step: int) -> Path:
    """Where ``step`` of ``run`` lies, whether it is there or not."""
    return Path(run) / step_name(step)


def folder_of(path: Path) -> Path:
    """The step folder that a file lies in (its parent when there is none)."""
    return next((parent for parent in path.parents if step_of(parent.name) is not None), path.parent)


def is_complete(folder: Path) -> bool:
    """Whether a step folder was written to its end: the manifest, which comes last, is there."""
    return (folder / MANIFEST).is_file()


def list_steps(run: Path | str, *, complete: bool = True) -> list[int]:
    """Steps found in ``run``, ascending; also the incomplete ones when ``complete`` is false."""
    folder = Path(run)
    if not folder.is_dir():
        return []
    steps = ((step_of(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted(step for step, path in steps if step is not None and (not complete or is_complete(path)))


def read_step_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a step folder, checked against its own hash.

    Raises:
        CheckpointError: missing, damaged, of another format, or naming files outside the folder.
    """
    try:
        return _checked_manifest(Path(folder))
    except CheckpointError as error:
        raise CheckpointError(error.message, recovery_hint(Path(folder))) from None


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """As :func:`read_step_manifest`, which looks for the way back too."""
    if not is_complete(folder):
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    path = folder / MANIFEST
    manifest = files.read_manifest(path, CheckpointError)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')!r}, expected {FORMAT!r}")
    validated(manifest, StepManifest, path, CheckpointError)
    if step_of(folder.name) not in (None, manifest["step"]):
        raise CheckpointError(f"{path} is of step {manifest['step']:,}, the folder's name says otherwise")
    return manifest


def find_problem(folder: Path) -> str | None:
    """What is wrong with a step folder as far as a quick look tells (manifest and sizes), or None."""
    try:
        manifest = _checked_manifest(folder)
    except CheckpointError as error:
        return error.message
    for record in manifest["files"]:
        path = folder / record["name"]
        if (size := size_of(path)) is None:
            return f"{path} is missing"
        if size != record["bytes"]:
            return f"{path} has {size:,} bytes, the manifest says {record['bytes']:,}"
    return None


def size_of(path: Path) -> int | None:
    """Bytes of a regular file; None where there is none (any more)."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def newest_good(run: Path, *, before: int | None = None, without: Collection[int] = ()) -> Path | None:
    """The newest step folder that a quick look finds nothing wrong with, older than ``before``, none of ``without``."""
    for step in reversed(list_steps(run)):
        folder = step_folder(run, step)
        if (before is None or step < before) and step not in without and find_problem(folder) is None:
            return folder
    return None


def recovery_hint(folder: Path) -> str:
    """What to do when ``folder`` cannot be used: the newest good step older than it, by name."""
    previous = newest_good(folder.parent, before=step_of(folder.name)) if folder.parent.is_dir() else None
    if previous is None or previous == folder:
        return "restore the file from a copy; there is no older complete checkpoint beside it"
    name = previous.name
    return f"the newest older checkpoint is {name}: --checkpoint.restore_from {name} goes on from it"


def nonfinite_weights(folder: Path, names: Sequence[str]) -> CheckpointError:
    """What is said of a step whose tensors ``names`` hold NaN or infinity."""
    return CheckpointError(
        f"{folder} holds weights that are no numbers: {len(names)} tensors with NaN or infinity, {names[0]!r} first",
        f"{recovery_hint(folder)}; automodel inspect-ckpt {for_shell(folder.parent)} --verify checks all",
    )


def _seal(name: str) -> str:
    return files.hash_bytes(name.encode())


def write_pointer(run: Path | str, pointer: str, name: str) -> None:
    """Let LATEST or BEST name the step folder ``name``, atomically and durably."""
    assert pointer in POINTERS and step_of(name) is not None, (pointer, name)
    files.write_text(Path(run) / pointer, f"{name} {_seal(name)}\n")


def read_pointer(run: Path | str, pointer: str) -> str | None:
    """The folder name that LATEST or BEST holds, or None when there is no such file.

    Raises:
        CheckpointError: the file was changed since it was written.
    """
    path = Path(run) / pointer
    if not path.exists():
        return None
    hint = "it should be a text file with the name of a step folder; another program may have made it"
    text = read_bytes(path, CheckpointError, max_bytes=_MAX_POINTER_BYTES, hint=hint).decode(errors="replace")
    found = name_in_pointer(text)
    if found is None:
        newest = newest_good(Path(run))
        name = newest.name if newest else "(none)"
        raise CheckpointError(
            f"{path} is damaged: it holds {without_controls(repr(text[:60]))}",
            f"the newest complete checkpoint is {name}: write that name into {pointer}, or restore from it",
        )
    return found


def name_in_pointer(text: str) -> str | None:
    """The name of a step folder that the content of LATEST or BEST holds; None: it is damaged."""
    match = _POINTER_LINE.fullmatch(text)
    return match[1] if match and match[2] in (None, _seal(match[1])) else None


def resolve(run: Path | str, which: str = "LATEST", *, say: Say | None = None) -> Path:
    """The step folder that ``which`` means: LATEST, BEST, a step number, a folder name, or a path.

    A path may also be another run's folder (its LATEST is meant then) or its pointer, RUN/BEST. A LATEST that
    names a step which is missing or incomplete means the newest complete one; ``say`` gets a line about it.

    Raises:
        CheckpointError: there is no such checkpoint, or it is incomplete, or the pointer is damaged.
    """
    run = Path(run)
    if which in POINTERS:
        return _resolve_pointer(run, which, say)
    name = step_name(int(which)) if which.isdigit() else which
    for folder in (run / name, followed(which)):
        if is_complete(folder):
            return folder
        aside = folder.with_name(folder.name + REPLACED)
        if step_of(folder.name) and is_complete(aside):
            return aside
        if folder.is_dir() and (list_steps(folder) or (folder / "LATEST").is_file()):
            return _resolve_pointer(folder, "LATEST", say)
    raise CheckpointError(f"no complete checkpoint {which!r} in {run}", _present(run))


def _present(run: Path) -> str:
    """The newest steps by name, for a hint."""
    present = ", ".join(step_name(step) for step in list_steps(run)[-8:])
    return f"there is: {present}" if present else "there is no complete checkpoint in this folder"


def _resolve_pointer(run: Path, pointer: str, say: Say | None) -> Path:
    name = read_pointer(run, pointer)
    if name is not None:
        for folder in (run / name, run / (name + REPLACED)):
            if is_complete(folder):
                return folder
    newest = newest_good(run) if pointer == "LATEST" else None
    reason = f"{run / pointer} names {name}, which is not complete" if name else f"{run} has no {pointer}"
    if newest is None:
        raise CheckpointError(reason, _present(run))
    if say is not None:
        say(f"{reason}; taking {newest.name}, the newest complete checkpoint")
    return newest


def followed(path: Path | str) -> Path:
    """The step folder that a pointer file (RUN/LATEST, RUN/BEST) names; any other path as it is."""
    path = Path(path)
    return resolve(path.parent, path.name) if path.name in POINTERS and path.is_file() else path


def latest(run: Path | str, *, say: Say | None = None) -> Path | None:
    """What an automatic resume starts from, or None where there is nothing to resume."""
    run = Path(run)
    if read_pointer(run, "LATEST") is None and not list_steps(run):
        return None
    return resolve(run, "LATEST", say=say)


def refuse_unusable(run: Path | str) -> None:
    """Check that a run can be written to ``run``, which need not be there yet; makes and changes nothing.

    Raises:
        CheckpointError: a file is in the way, it may not be written, or another process is writing there.
    """
    there = _nearest(Path(run))
    if not there.is_dir():
        raise CheckpointError(
            f"{there} is a file, expected the run folder or one above it",
            "name another folder: checkpoint.checkpoint_dir",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write to {there}", "choose a folder that you may write to")
    if files.is_locked(Path(run) / LOCK_NAME):
        raise CheckpointError(f"another process is writing to {run}", "wait for it, or use another folder")


def _nearest(run: Path) -> Path:
    """``run``, or what there is above it."""
    folder = run.absolute()
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def refuse_full_disk(run: Path | str, num_bytes: int) -> None:
    """Check that the disk of ``run`` has room for one checkpoint of ``num_bytes``.

    Raises:
        CheckpointError: it has not.
    """
    free = shutil.disk_usage(_nearest(Path(run))).free
    if free < num_bytes:
        raise CheckpointError(
            f"a checkpoint takes about {num_bytes / 2**20:,.0f} MiB, and {run} has {free / 2**20:,.0f} MiB free",
            "free some space, name another folder (checkpoint.checkpoint_dir), or set checkpoint.enabled: false",
        )


@contextlib.contextmanager
def run_lock(run: Path | str) -> Iterator[None]:
    """Hold the run folder for one writer; a second one is refused at once. Killed processes leave no lock.

    Raises:
        CheckpointError: as :func:`refuse_unusable`.
    """
    refuse_unusable(run)
    Path(run).mkdir(parents=True, exist_ok=True)
    with files.exclusive_lock(Path(run) / LOCK_NAME, busy=f"another process is writing to {run}"):
        yield


def checkpoint_at(path: str | Path) -> Path | None:
    """The step folder that ``path`` is or points at (RUN/BEST), or the LATEST of a run folder; else None."""
    folder = followed(path)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if is_complete(folder) and step_of(folder.name) is not None:
        return folder
    is_run = folder.is_dir() and ((folder / "LATEST").is_file() or list_steps(folder))
    return resolve(folder, "LATEST") if is_run else None
