"""The run folder: an earlier run moved aside, the checkpoint to continue from, and who writes the next ones.

Rank 0 looks at the folder for all; what it finds wrong ends every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.finite import nonfinite_parameters
from automodel_cli.checkpoint.together import on_main
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError
from automodel_cli.files import fsync_folder
from automodel_cli.train.soundness import Soundness

WHAT = "opening the run folder"
Say = Callable[[str], None]


def open_run_folder(cfg: PretrainConfig, world: World, *, fresh: bool, say: Say) -> Checkpointer:
    """The checkpointer of this run; with ``fresh`` an earlier run is first moved out of its way."""
    settings = cfg.checkpoint
    folder = Path(settings.checkpoint_dir)

    def make_room() -> None:
        if moved := move_aside(folder):
            say(f"moved the earlier run to {moved}")

    if settings.enabled and fresh:
        on_main(world, make_room, what=WHAT)
    return Checkpointer(
        folder,
        keep_last=settings.keep_last,
        keep_every=settings.keep_every,
        save_format=settings.model_save_format,
        is_async=settings.is_async and settings.enabled,
        world=world,
        say=say,
    )


def find_checkpoint(cfg: PretrainConfig, world: World, *, say: Say) -> Path | None:
    """The step folder that this run continues from, or None for a run that begins."""
    settings = cfg.checkpoint
    folder = Path(settings.checkpoint_dir)

    def find() -> str | None:
        if settings.restore_from is not None:
            return str(layout.resolve(folder, settings.restore_from, say=say))
        found = layout.latest(folder, say=say)
        return None if found is None else str(found)

    name = on_main(world, find, what=WHAT) if settings.enabled else None
    return None if name is None else Path(name)


def reason_not_to_save(
    soundness: Soundness, model: torch.nn.Module, world: World, *, at_the_end: bool
) -> str | None:
    """Why no checkpoint is made of the run as it is now, or None; all ranks call this and get the same."""
    if reason := soundness.reason_not_to_save(at_the_end=at_the_end):
        return reason
    odd = world.any(bool(nonfinite_parameters(model)))
    return "the weights hold NaN or infinity" if odd else None


def diverged(checkpointer: Checkpointer, what: str) -> AutomodelError:
    """The end of a run that has left the numbers; LATEST now names what can be gone on from."""
    good = checkpointer.step_back()
    where = (
        f"the last good checkpoint is {good}"
        if good
        else "there is no checkpoint yet that led to a finite loss"
    )
    return AutomodelError(what, f"{where}; a lower learning rate or a look at the data may help")


def move_aside(folder: Path) -> Path | None:
    """Move all that is in ``folder`` (but the lock) to ``folder.old-N``; None where it was empty. Deletes nothing."""
    content = [item for item in sorted(folder.iterdir()) if item.name != layout.LOCK_NAME]
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
