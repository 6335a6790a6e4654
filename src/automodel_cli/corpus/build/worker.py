"""A worker process of the pipeline, with two inherited pipes, IN and OUT; ``pool`` starts it.

It reads pickled units from IN and writes answers to OUT until IN ends, which also happens when the parent dies.
A thread drains IN, so that the parent never waits to hand out work while this process waits to hand in results.
An answer is a pickled ``(kind, value, size)`` and after it ``size`` raw bytes: the token buffer of a ``"chunk"``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from automodel_cli.corpus.build.pool import Task
from automodel_cli.corpus.documents.inputs import announce
from automodel_cli.corpus.documents.units import Chunk
from automodel_cli.errors import AutomodelError, is_panic, panic_message


def _drain(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Move everything that arrives into ``tasks``; leave at once when the parent is gone or has enough."""
    try:
        while True:
            unit = connection.recv()
            with contextlib.suppress(AutomodelError):  # whoever reads it says what is wrong
                announce(unit)
            tasks.put(unit)
    except (EOFError, OSError):
        os._exit(0)


def _answer(turn: Callable[[Any], Chunk], unit: Any, out: Connection) -> None:
    try:
        chunk = turn(unit)
    except AutomodelError as error:
        out.send(("error", error, 0))
    except Exception:
        out.send(("bug", traceback.format_exc(), 0))
    except BaseException as error:
        if not is_panic(error):
            raise
        out.send(("error", panic_message(error), 0))
    else:
        tokens, chunk.tokens = chunk.tokens, chunk.tokens[:0]
        out.send(("chunk", chunk, tokens.nbytes))
        view = tokens.view(np.uint8).data
        while view:
            view = view[os.write(out.fileno(), view) :]


def main(argv: list[str]) -> None:
    """Serve until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    incoming, out = Connection(int(argv[0]), writable=False), Connection(int(argv[1]), readable=False)
    task: Task[Chunk] = incoming.recv()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_drain, args=(incoming, tasks), daemon=True).start()
    try:
        turn = task.open()
    except AutomodelError as error:
        out.send(("error", error, 0))
        return
    while True:
        _answer(turn, tasks.get(), out)


def run(argv: list[str]) -> None:
    """``main``, which ends quietly when the parent has enough."""
    try:
        main(argv)
    except BrokenPipeError:
        sys.exit(0)
