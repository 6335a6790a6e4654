"""Run ``automodel`` and die by SIGKILL at the n-th call of a point: ``preprocess_faults.py POINT N ARGUMENT...``.

| point    | what is under way                                                                |
|----------|----------------------------------------------------------------------------------|
| read     | the source hands out a unit                                                      |
| write    | half of a run of tokens is in a shard's temporary                                |
| fsync    | something is about to be made durable                                            |
| rename   | something is about to be published                                               |
| journal  | progress.json is about to be written                                             |
| unlink   | something is about to be removed: temporaries, buckets, the journal              |
| manifest | a file is being hashed for the manifest (the last instants before it is there)   |

``POINT`` ``none`` runs undisturbed, ``count`` too, and prints how often each point was passed. Units and the
distance between notes of the position are made tiny, so that a small input passes each point often. Nothing in the
product knows of this.
"""

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli.corpus.build import output, pipeline, token_output
from automodel_cli.corpus.documents import source as documents
from automodel_cli.corpus.documents.cutting.cut import Cut
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.corpus.shuffle import shuffled_source

POINTS: dict[str, tuple[Any, str]] = {
    "read": (Cut, "unit"),
    "write": (ShardWriter, "write"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    "journal": (token_output, "write_progress"),
    "unlink": (Path, "unlink"),
    "manifest": (output.Output, "facts"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_write(original: Callable[..., None], writer: ShardWriter, tokens: Any, starts: Any) -> None:
    half = len(tokens) // 2
    original(writer, tokens[:half], starts[starts < half])
    hand_to_the_kernel(writer._tokens)


def hand_to_the_kernel(file: GrowingFile) -> None:
    """What it has survives the process; also what a worker is to put there."""
    file.handle.flush()
    if file._settle is not None:
        file._settle()


def arm(point: str, number: int) -> None:
    """Make the ``number``-th call of ``point`` the process's last deed."""
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            if point == "write":
                half_a_write(original, *args)
            die()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def count_all() -> None:
    """Print ``COUNTS {point: calls}`` at the end."""
    calls = dict.fromkeys(POINTS, 0)

    def watch(point: str) -> None:
        owner, name = POINTS[point]
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[point] += 1
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for point in POINTS:
        watch(point)
    atexit.register(lambda: print("COUNTS", json.dumps(calls), file=sys.stderr))


if __name__ == "__main__":
    documents.BYTES_PER_DOCUMENT = shuffled_source.BYTES_PER_DOCUMENT = 64
    pipeline.EVERY_TOKENS = 500  # positions inside a shard, too
    if sys.argv[1] == "count":
        count_all()
    elif sys.argv[1] != "none":
        arm(sys.argv[1], int(sys.argv[2]))
    from automodel_cli.cli.app import main

    sys.argv = ["automodel", *sys.argv[3:]]
    main()
