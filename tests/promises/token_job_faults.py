"""One of the processes that make token files in tasks, which dies at its n-th deed: ``... COMMAND DATA OUT N ORDER``.

A deed is what changes the disk: ids written (of which half are), an fsync, a new folder, a new name, a removal; ``N`` 0
is for ever. Like a real one the process begins unless all is done, does tasks that are left, in an order of its own,
and finishes. Units and parts are tiny. Nothing in the product knows of this.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.documents import source as documents
from automodel_cli.corpus.jobs import part_files
from automodel_cli.errors import AutomodelError
from automodel_cli.files import exclusive_lock
from automodel_cli.recipes.preprocess import megatron, nanogpt

DEEDS: list[tuple[Any, str]] = [
    (part_files.PartWriter, "_write_tokens"),
    (os, "fsync"),
    (os, "mkdir"),
    (os, "replace"),
    (os, "unlink"),
    (os, "rmdir"),
]


def arm(number: int) -> list[int]:
    """Make the ``number``-th deed this process's last; what is left to that."""
    left = [number]
    for owner, name in DEEDS:
        original = getattr(owner, name)

        def counted(*args: Any, original: Any = original, name: str = name, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "_write_tokens":
                    original(args[0], args[1][: len(args[1]) // 2])
                    args[0]._tokens.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)
    return left


def prepare(command: str, data: Path, out: Path) -> Any:
    """The build that a command makes of its settings."""

    def silent(_: Any) -> None: ...

    if command == "nanogpt":
        options = {"val_tokens": 900, "max_tokens": 9000, "shard_tokens": 2500, "chunk_size": 1, "num_workers": 1}
        cfg = PreprocessNanogptConfig(dataset=str(data), output_dir=str(out), tokenizer="byte", **options)
        return nanogpt._prepare(cfg, silent, silent)
    more = {"append_eod": True, "json_keys": ["text", "title"], "shards": 3, "chunk_size": 1, "workers": 1}
    here = {"input": str(data), "output_path": str(out), "output_prefix": "made"}
    return megatron._prepare(PreprocessMegatronConfig(tokenizer="byte", **here, **more), silent, silent)


def do_tasks(job: Any, order: random.Random) -> None:
    """All that is left, stage by stage."""
    for stage in job.stages:
        tasks = list(range(job.tasks(stage)))
        order.shuffle(tasks)
        for task in tasks:
            job.run_task(stage, task, lambda report: None)


def run(build: Any, order: random.Random) -> None:
    """Begin, work and finish, unless others have finished."""

    def alone(deed: Callable[[], None]) -> bool:
        with exclusive_lock(build.output.lock_path, busy="", wait=True):
            if build.output.finished(build.made()) is not None:
                return False
            build.output.refuse_strangers()
            deed()
            return True

    build.output.folder.mkdir(exist_ok=True)
    job = build.job()
    if alone(job.begin):
        do_tasks(job, order)
        alone(job.finish)


if __name__ == "__main__":
    for module in (parts, documents):
        module.BYTES_PER_DOCUMENT = 64  # type: ignore[attr-defined]
    parts.PART_BYTES = 1500
    command, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    left = arm(int(sys.argv[4]) or sys.maxsize)
    try:
        run(prepare(command, data, out), random.Random(int(sys.argv[5])))
    except AutomodelError as error:  # another process finished while this one was at a task
        sys.exit(f"{error}")
    print("DEEDS", sys.maxsize - left[0])
