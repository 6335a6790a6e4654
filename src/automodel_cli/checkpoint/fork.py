"""A run folder that begins with the checkpoint of another run. No torch.

The files of a step never change once it is complete, so they are shared by hard links, which cost no room and keep the
bytes when the other run deletes the step; where the file system has no such links they are copied. The folder is made
under another name and appears by one rename: it is there with all that a resume needs, or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from automodel_cli import files
from automodel_cli.checkpoint import layout, lineage
from automodel_cli.checkpoint.lineage import BranchFile
from automodel_cli.checkpoint.publishing import discarding
from automodel_cli.checkpoint.run_files import CONFIG_NAME, seal_config
from automodel_cli.errors import CheckpointError


def refuse_taken(run: Path) -> None:
    """Check that a branch can begin in ``run``: it is not there yet, or empty.

    Raises:
        CheckpointError: it holds something, or cannot be made.
    """
    layout.refuse_unusable(run)
    if run.is_dir() and any(one.name != layout.LOCK_NAME for one in run.iterdir()):
        raise CheckpointError(f"{run} is not empty, and holds no branch", "name another folder: --into")


def begin_run(run: Path, step: Path, branch: BranchFile, config_yaml: str) -> bool:
    """Make the run folder ``run`` of a branch of ``step``; whether its files are links (else copies).

    Raises:
        CheckpointError: the step was deleted meanwhile, the folder is taken, or there is no room.
    """
    refuse_taken(run)
    temporary = files.temporary_of(Path(os.path.normpath(run)))
    with files.disk_errors_named(run), layout.run_lock(temporary), discarding(temporary):
        _clear(temporary)
        name = layout.step_name(branch.parent.step)
        linked = _take(step, temporary / name)
        if (trouble := layout.find_problem(temporary / name)) is not None:
            raise CheckpointError(trouble, layout.recovery_hint(step))
        if layout.read_step_manifest(temporary / name)["self"] != branch.parent.checkpoint:
            raise CheckpointError(
                f"{step} was replaced meanwhile: the run it belongs to has saved it anew", "give the command again"
            )
        layout.write_pointer(temporary, "LATEST", name)
        if layout.read_pointer(step.parent, "BEST") == name:
            layout.write_pointer(temporary, "BEST", name)
        files.write_text(temporary / CONFIG_NAME, seal_config(config_yaml))
        lineage.write(temporary, branch)
        _publish(temporary, run)
    return linked


def _clear(folder: Path) -> None:
    """What a killed attempt has left."""
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != layout.LOCK_NAME:
            left.unlink()


def _take(step: Path, target: Path) -> bool:
    linked = True
    names = [record["name"] for record in layout.read_step_manifest(step)["files"]]
    try:
        for name in (*names, layout.MANIFEST):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            linked = _link_or_copy(step / name, target / name, link=linked)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename} is gone: the run it belongs to has deleted {step.name} meanwhile",
            "name another step: RUN@STEP",
        ) from None
    for folder in {target, *((target / name).parent for name in names)}:
        files.fsync_folder(folder)
    return linked


def _link_or_copy(source: Path, target: Path, *, link: bool) -> bool:
    if link:
        try:
            os.link(source, target, follow_symlinks=True)
            return True
        except FileNotFoundError:
            raise
        except OSError:  # another file system, one without links, or somebody else's file
            pass
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write, 8 << 20)
        files.fsync_file(write)
    return False


def _publish(temporary: Path, run: Path) -> None:
    run.parent.mkdir(parents=True, exist_ok=True)
    if run.is_dir():
        (run / layout.LOCK_NAME).unlink(missing_ok=True)
    try:
        temporary.replace(run)
    except OSError as error:
        raise CheckpointError(f"cannot make {run}: {error.strerror}", "name another folder: --into") from error
    files.fsync_folder(run.parent)
