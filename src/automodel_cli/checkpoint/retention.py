"""Which checkpoints of a run stay: the newest, milestones, what is pointed at, and the newest proven one. No torch.

A checkpoint is *proven* when its weights have given a finite loss since. Only the newest one can be unproven, as no
save follows a loss that is not finite (see ``PretrainRecipe``); until it is proven, the one before it stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.errors import CheckpointError


class Retention:
    """What of one run may be deleted, kept up to date as the run saves, loads and learns.

    Never a step that was there, and newer, when this run loaded its own: only what this run wrote or passed by may
    go (``protected`` are the others). Nor the newest proven one.
    """

    def __init__(
        self, run: Path, *, keep_last: int | None, keep_every: int | None, say: layout.Say | None = None
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}, expected at least 1", "null keeps all")
        self.run, self.keep_last, self.keep_every = run, keep_last, keep_every
        self._say = say or (lambda line: None)
        self.protected = set(layout.list_steps(run))
        self._newest: Path | None = None  # saved or loaded last
        self._proven: Path | None = None

    def saving(self, target: Path, *, proven: bool) -> int | None:
        """Note that ``target`` is saved after a finite loss; the step that must outlive it until it is proven."""
        if self._newest is not None and self._newest != target:
            self._proven = self._newest
        self._newest, before = target, self._proven
        if proven:
            self._proven = target
        return None if proven or before is None else layout.step_of(before.name)

    def loaded(self, folder: Path, newer: set[int] | None) -> None:
        """Note that the run goes on from ``folder``; ``newer`` steps of this run belong to another course of it."""
        self.protected = self.protected if newer is None else newer
        self._newest, self._proven = folder, None

    def confirm(self, step: int) -> None:
        """Update ``step`` has had a finite loss: the checkpoint it went on from is proven."""
        if self._newest is not None and step > (layout.step_of(self._newest.name) or 0):
            self._proven = self._newest

    def proven(self) -> Path | None:
        """The newest checkpoint of this course of the run that a finite loss has followed, or None."""
        if self._proven is None and self._newest is not None and self._newest.parent == self.run:
            # Saves before the one that was loaded were followed by it, so by a finite loss.
            return layout.newest_good(self.run, before=layout.step_of(self._newest.name))
        return self._proven

    def apply(self, needed: int | None = None) -> list[int]:
        """Delete the complete steps that :func:`to_keep` does not name, nor ``needed``; returns them.

        Each goes by a rename first, so that a killed deletion leaves nothing that looks complete. Where LATEST or
        BEST is damaged nothing is deleted: it might have named any of them.
        """
        try:
            names = [layout.read_pointer(self.run, pointer) for pointer in layout.POINTERS]
        except CheckpointError as error:
            self._say(f"no old checkpoint is deleted: {error.message}")
            return []
        steps_named = (needed, *(layout.step_of(name) for name in names if name))
        pointed = {step for step in steps_named if step is not None}
        steps, numbers = (
            layout.list_steps(self.run),
            {"keep_last": self.keep_last, "keep_every": self.keep_every},
        )
        kept = to_keep(steps, **numbers, pointed=pointed, protected=self.protected)
        return [step for step in steps if step not in kept and self._delete(step)]

    def _delete(self, step: int) -> bool:
        folder = layout.step_folder(self.run, step)
        aside = folder.with_name(folder.name + layout.DELETED)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            files.publish(folder, aside)
        except OSError as error:  # a run does not end because an old checkpoint could not go
            self._say(f"{folder.name} could not be deleted: {error.strerror}")
            return False
        shutil.rmtree(aside, ignore_errors=True)  # what cannot go now goes at the next save
        return True


def to_keep(
    steps: Collection[int],
    *,
    keep_last: int | None,
    keep_every: int | None,
    pointed: Collection[int] = (),
    protected: Collection[int] = (),
) -> set[int]:
    """Which of ``steps`` retention leaves alone; all of them without ``keep_last``.

    The newest ``keep_last``, every multiple of ``keep_every``, and those ``pointed`` at. The ``protected``
    ones stay and do not count.
    """
    if keep_last is None:
        return set(steps)
    own = sorted(set(steps) - set(protected))
    milestones = {step for step in own if keep_every and step % keep_every == 0}
    return set(own[-keep_last:]) | milestones | set(pointed) | set(protected)
