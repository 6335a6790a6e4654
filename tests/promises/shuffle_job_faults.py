"""Run the tasks of a shuffle in stages, in random order, and die at the n-th deed: ``... DATA OUT N``.

A deed is what changes the disk: a write (of which half is done), an fsync, a new name, a removal. Nothing in the
product knows of this.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.shuffle import document_files, runs, scatter, scatter_stages, shuffle_job
from automodel_cli.recipes.preprocess import shuffle

OPTIONS = {"val_documents": 20, "chunks": 3, "memory": 20000, "dedup": True, "num_workers": 1}
DEEDS: list[tuple[Any, str]] = [
    (runs, "write_all"),
    (document_files.OpenFile, "write"),
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "unlink"),
    (shutil, "rmtree"),
]
HALVED = ("write_all", "write")  # the last argument is what is written


def arm(number: int) -> None:
    """Make the ``number``-th deed this process's last."""
    left = [number]
    for owner, name in DEEDS:
        original = getattr(owner, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name in HALVED:
                    original(*args[:-1], args[-1][: len(args[-1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)


def run(data: Path, out: Path, order: random.Random) -> None:
    """Every task that is not done yet, then the last step."""
    out.mkdir(exist_ok=True)
    build = shuffle._prepare(
        ShuffleConfig(dataset=str(data), output_dir=str(out), **OPTIONS), lambda _: None, lambda _: None
    )
    if (out / "manifest.json").exists():  # as ``Build.run``
        build.output.finished(build.made())
        return
    job = build.job()
    job.begin()
    for stage in job.stages:
        tasks = list(range(job.tasks(stage)))
        order.shuffle(tasks)
        for task in tasks:
            if not job.is_done(stage, task):
                job.run_task(stage, task, lambda _: None)
    job.finish()


if __name__ == "__main__":
    parts.PART_BYTES = 4000
    for module in (parts, scatter, scatter_stages, shuffle_job):
        module.BYTES_PER_DOCUMENT = 64  # type: ignore[attr-defined]
    scatter._LEAST_BLOCK_BYTES = 1000
    deed = int(sys.argv[3])
    if deed:
        arm(deed)
    run(Path(sys.argv[1]), Path(sys.argv[2]), random.Random(deed))
