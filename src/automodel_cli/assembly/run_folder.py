"""The run folder: an earlier run moved aside, the checkpoint to continue from, and who writes the next ones.

Rank 0 looks at the folder for all; what it finds wrong ends every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from automodel_cli.assembly.machine.memory import numbers_kept
from automodel_cli.checkpoint import layout, nested_runs
from automodel_cli.checkpoint.all_ranks import on_rank_zero
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.run_files import refuse_foreign_config
from automodel_cli.checkpoint.snapshot import nonfinite_parameters
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.files import fsync_folder
from automodel_cli.models.interface import CausalLM
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
        on_rank_zero(world, make_room, what=WHAT)
    return Checkpointer(
        folder,
        keep_last=settings.keep_last,
        keep_every=settings.keep_every,
        save_format=settings.model_save_format,
        is_async=settings.is_async and settings.enabled,
        world=world,
        say=say,
    )


def check_run_folder(cfg: PretrainConfig, model: CausalLM, world: World, *, fresh: bool) -> None:
    """Check that the run folder can take this run: room for a checkpoint, and an earlier run that can be moved.

    Raises:
        CheckpointError: it cannot.
    """
    if not cfg.checkpoint.enabled:
        return
    folder = Path(cfg.checkpoint.checkpoint_dir)

    def check() -> None:
        if fresh:
            _refuse_moved(cfg.init_from, nested_runs.files_of_run(folder))
        refuse_foreign_config(folder)
        layout.refuse_full_disk(folder, numbers_kept(cfg, model) * torch.float32.itemsize)

    on_rank_zero(world, check, what=WHAT)


def _refuse_moved(init_from: str | None, moved: Sequence[Path]) -> None:
    found = Path() if init_from is None else (layout.checkpoint_at(init_from) or Path(init_from)).resolve()
    if init_from is not None and any(found.is_relative_to(path.resolve()) for path in moved):
        raise CheckpointError(f"--fresh moves {found} away, and init_from asks for its weights", _ELSEWHERE)


_ELSEWHERE = "leave --fresh out and name another checkpoint.checkpoint_dir; init_from takes weights alone"


def find_checkpoint(cfg: PretrainConfig, world: World, *, fresh: bool, say: Say) -> Path | None:
    """The step folder that this run continues from, or None for a run that begins.

    ``fresh``: what lies in the run folder itself is moved out of the way before.
    """
    settings = cfg.checkpoint
    folder = Path(settings.checkpoint_dir)

    def find() -> str | None:
        if settings.restore_from is not None:
            found = layout.resolve(folder, settings.restore_from, say=say)
            if fresh and found.parent.resolve() == folder.resolve():
                raise CheckpointError(
                    f"--fresh moves {found} away, and checkpoint.restore_from asks to go on from it",
                    _ELSEWHERE,
                )
            return str(found)
        newest = None if fresh else layout.latest(folder, say=say)
        return None if newest is None else str(newest)

    name = on_rank_zero(world, find, what=WHAT) if settings.enabled else None
    return None if name is None else Path(name)


def reason_not_to_save(soundness: Soundness, model: torch.nn.Module, world: World, *, at_the_end: bool) -> str | None:
    """Why no checkpoint is made of the run as it is now, or None; all ranks call this and get the same."""
    if reason := soundness.reason_not_to_save(at_the_end=at_the_end):
        return reason
    odd = world.any(bool(nonfinite_parameters(model)))
    return "the weights hold NaN or infinity" if odd else None


def diverged(checkpointer: Checkpointer, what: str) -> AutomodelError:
    """The end of a run that has left the numbers; LATEST now names what can be gone on from."""
    good = checkpointer.step_back()
    none = "there is no checkpoint yet that led to a finite loss"
    where = f"the last good checkpoint is {good}" if good else none
    return AutomodelError(what, f"{where}; a lower learning rate or a look at the data may help")


def move_aside(folder: Path) -> Path | None:
    """Move the run in ``folder`` to ``folder.old-N``; None where there is none. Deletes nothing.

    The lock, other runs below and files of others stay.

    Raises:
        CheckpointError: something is in doubt, or the folder beside it cannot be made.
    """
    content = nested_runs.files_of_run(folder)
    if not content:
        return None
    target = unused(folder)
    try:
        target.mkdir()
        for item in content:
            item.rename(target / item.name)
        fsync_folder(folder)
    except OSError as error:  # a folder above that is not ours, another file system
        raise CheckpointError(
            f"the earlier run in {folder} cannot be moved to {target}: {error.strerror}",
            "move it yourself, or take another checkpoint_dir; nothing is deleted",
        ) from error
    return target


def unused(folder: Path) -> Path:
    """The first ``folder.old-N`` that is not there yet."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return target
