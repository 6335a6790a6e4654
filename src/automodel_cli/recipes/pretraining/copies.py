"""Copies of finished checkpoints elsewhere: uploads to the Hub, and the mirror in object storage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.assembly.hub.uploads import build_uploads
from automodel_cli.assembly.mirror import build_mirror, finish_mirror
from automodel_cli.checkpoint.hf.uploads import Uploads
from automodel_cli.checkpoint.mirror import Mirror
from automodel_cli.distributed.world import World
from automodel_cli.recipes.pretraining.run import Run

_UPLOAD_POLL_S = 0.1


@dataclass
class Copies:
    """What makes the copies of a run; each is None where there are none, or where another rank makes them."""

    run: Run
    uploads: Uploads | None
    mirror: Mirror | None

    @classmethod
    def begin(cls, run: Run) -> Copies:
        """What the configuration asks for."""
        uploads = build_uploads(run.cfg, run.run_folder, run.world, run.reporter.say)
        return cls(run, uploads, build_mirror(run.cfg, run.world, run.reporter.say) if run.saves else None)

    def is_uploaded(self, *, is_best: bool, is_last: bool) -> bool:
        """Whether a checkpoint goes to the Hub."""
        wanted = self.run.cfg.checkpoint.push_to_hub
        return wanted is not None and {"all": True, "best": is_best, "last": is_last}[wanted.every]

    def add(self, step: Path, *, uploaded: bool) -> None:
        """Begin the copies of a finished step; on rank 0."""
        if self.uploads is not None and uploaded:
            self.uploads.add(step)
        if self.mirror is not None:
            self.mirror.add(step)

    def finish(self) -> None:
        """Wait for all of them, all ranks together, but not in a run that was told to stop."""
        run, uploads = self.run, self.uploads
        if run.cfg.checkpoint.push_to_hub is not None:
            if uploads is not None and uploads.busy and not run.stop.requested:
                run.reporter.say("waiting for the upload")
            while run.world.any(uploads is not None and uploads.busy) and not run.stop.agreed(run.world.any):
                time.sleep(_UPLOAD_POLL_S)
            self._give_up_uploads()
        if run.cfg.checkpoint.mirror is not None and run.saves:
            finish_mirror(self.mirror, run.world, stopped=lambda: run.stop.requested)

    def give_up(self, error: BaseException) -> None:
        """After an error of the run, on this rank alone; an interrupt leaves the mirror as it is."""
        self._give_up_uploads()
        if isinstance(error, Exception):
            finish_mirror(self.mirror, World.single(), stopped=lambda: True)

    def _give_up_uploads(self) -> None:
        if self.uploads is not None and self.uploads.busy:
            self.uploads.given_up()
