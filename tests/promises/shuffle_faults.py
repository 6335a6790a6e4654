"""Run ``automodel preprocess shuffle`` and die at the n-th call of a point: ``shuffle_faults.py POINT N ARGUMENT...``.

| point    | what is under way                                                  |
|----------|--------------------------------------------------------------------|
| read     | the source hands out a unit                                        |
| scatter  | half of some rows is in a bucket                                   |
| compare  | digests or dropped places are about to be written                  |
| sort     | a bucket is about to be read                                       |
| file     | half of some rows is in an output file's temporary                 |
| fsync    | something is about to be made durable                              |
| rename   | something is about to get its name                                 |
| manifest | the manifest is about to be written                                |
| remove   | temporary files are about to go                                    |

``POINT`` ``none`` runs undisturbed, ``count`` too, and prints how often each point was passed. Units and pieces are
made tiny, so that a small input passes each point often. Nothing in the product knows of this.
"""

import atexit
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

from automodel_cli.corpus.documents import source as documents
from automodel_cli.corpus.documents.cutting.cut import Cut
from automodel_cli.corpus.shuffle import bucket_reader, buckets, document_files, duplicates, scatter
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest

POINTS: dict[str, tuple[Any, str]] = {
    "read": (Cut, "unit"),
    "scatter": (buckets.AppendedFiles, "append"),
    "compare": (duplicates.Duplicates, "_append"),
    "sort": (bucket_reader.BucketSorter, "_load"),
    "file": (document_files.OpenFile, "write"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    "manifest": (DocumentsManifest, "write"),
    "remove": (shutil, "rmtree"),
}
HALVED = ("scatter", "file")  # the last argument is what is written


def at_each_call(point: str, visit: Callable[[Callable[..., Any], tuple[Any, ...]], None]) -> None:
    """Have ``visit(original, arguments)`` before each call of ``point``."""
    owner, name = POINTS[point]
    original = getattr(owner, name)

    def visited(*args: Any, **kwargs: Any) -> Any:
        visit(original, args)
        return original(*args, **kwargs)

    setattr(owner, name, visited)


def arm(point: str, number: int) -> None:
    """Make the ``number``-th call of ``point`` the process's last deed."""
    calls = [0]

    def count_down(original: Callable[..., Any], args: tuple[Any, ...]) -> None:
        calls[0] += 1
        if calls[0] == number:
            if point in HALVED:
                original(*args[:-1], args[-1][: len(args[-1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    at_each_call(point, count_down)


def count_all() -> None:
    """Print ``COUNTS {point: calls}`` at the end."""
    calls = dict.fromkeys(POINTS, 0)

    def counter(point: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[point] += 1

        return count

    for point in POINTS:
        at_each_call(point, counter(point))
    atexit.register(lambda: print("COUNTS", json.dumps(calls), file=sys.stderr))


if __name__ == "__main__":
    documents.BYTES_PER_DOCUMENT = scatter.BYTES_PER_DOCUMENT = 64
    scatter._LEAST_BLOCK_BYTES = 64
    if sys.argv[1] == "count":
        count_all()
    elif sys.argv[1] != "none":
        arm(sys.argv[1], int(sys.argv[2]))
    from automodel_cli.cli.app import main

    sys.argv = ["automodel", *sys.argv[3:]]
    main()
