"""What the tasks of a job leave: a folder each, ``STAGE/NNNNN``, which appears whole or not at all.

A task writes into a folder of its own name and a random ending. When all of it is on the disk, it is renamed; if
another process was quicker, that one's folder stays. What a killed process left under such a name is never read.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from automodel_cli.corpus.jobs.work_folder import gone_named
from automodel_cli.files import TEMP_SUFFIX, disk_errors_named, fsync_folder, sync_below

TASK_FOLDER = rf"[a-z]+/\d{{5,}}(\.\w+{TEMP_SUFFIX.replace('.', '[.]')})?"
"""For patterns of names: the folder of a task, finished or not."""


class StageFolders:
    """The folders of the tasks of one job, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, stage: str, task: int) -> Path:
        """The folder of a task that is done."""
        return self._folder / stage / f"{task:05d}"

    def is_done(self, stage: str, task: int) -> bool:
        """Whether it is there."""
        return self.path(stage, task).is_dir()

    @contextlib.contextmanager
    def making(self, stage: str, task: int) -> Iterator[Path]:
        """A folder to write into; on a clean exit it is made durable and published, otherwise it goes.

        Raises:
            AutomodelError: the disk is full, or the job's folder is gone.
        """
        target = self.path(stage, task)
        with gone_named(target), disk_errors_named(target):
            target.parent.mkdir(exist_ok=True)  # the job's folder is there, unless somebody started over
            own = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=TEMP_SUFFIX, dir=target.parent))
            try:
                yield own
                sync_below(own)
                _publish(own, target)
            finally:
                shutil.rmtree(own, ignore_errors=True)


def _publish(own: Path, target: Path) -> None:
    try:
        own.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
            raise
    fsync_folder(target.parent)
