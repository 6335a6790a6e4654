"""A worker process of the pipeline, with two inherited pipes, IN and OUT; ``pool`` starts it.

It reads pickled units from IN and writes answers to OUT until IN ends, which also happens when the parent dies.
A thread drains IN, so that the parent never waits to hand out work while this process waits to hand in results.
An answer is a pickled ``(kind, value, size)`` and after it ``size`` raw bytes: the token buffer of a ``"chunk"``.
Of a ``"held"`` chunk the buffer stays here; the thread writes it to files as it is told (``held_tokens``), which is
answered by ``"placed"`` or an error.
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

from automodel_cli.corpus.build.held_tokens import PlaceOrder, place
from automodel_cli.corpus.build.pool import Task
from automodel_cli.corpus.documents.inputs import announce
from automodel_cli.corpus.documents.units import Chunk
from automodel_cli.errors import AutomodelError, is_panic, panic_message


class _Held:
    """Token buffers that wait for their places, and what became of those that were told."""

    def __init__(self) -> None:
        self._buffers: dict[int, np.ndarray] = {}
        self._count = 0
        self._placed: queue.SimpleQueue[AutomodelError | None] = queue.SimpleQueue()

    def keep(self, tokens: np.ndarray) -> None:
        """Of the next chunk."""
        self._buffers[self._count] = tokens
        self._count += 1

    def obey(self, order: PlaceOrder) -> None:
        """In the thread that drains."""
        buffer = self._buffers.pop(order.number) if order.last else self._buffers[order.number]
        if not order.placements:
            return
        try:
            place(buffer, order.placements)
        except AutomodelError as error:
            self._placed.put(error)
        except OSError as error:
            self._placed.put(AutomodelError(f"cannot write {error.filename}: {error.strerror}", ""))
        else:
            self._placed.put(None)

    def report(self, out: Connection) -> None:
        """Say what was placed since the last time."""
        while not self._placed.empty():
            error = self._placed.get()
            out.send(("placed", error, 0))


def _drain(connection: Connection, tasks: queue.SimpleQueue[Any], held: _Held) -> None:
    """Move everything that arrives into ``tasks``; leave at once when the parent is gone or has enough."""
    try:
        while True:
            item = connection.recv()
            if isinstance(item, PlaceOrder):
                held.obey(item)
                item = None  # so that it is reported also where nothing else is to be done
            else:
                with contextlib.suppress(AutomodelError):  # whoever reads it says what is wrong
                    announce(item)
            tasks.put(item)
    except (EOFError, OSError):
        os._exit(0)


def _answer(turn: Callable[[Any], Chunk], unit: Any, out: Connection, held: _Held | None = None) -> None:
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
        if held is not None:
            held.keep(tokens)  # before anybody can ask for it
            out.send(("held", chunk, len(tokens)))
            return
        out.send(("chunk", chunk, tokens.nbytes))
        view = tokens.view(np.uint8).data
        while view:
            view = view[os.write(out.fileno(), view) :]


def main(argv: list[str]) -> None:
    """Serve until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    incoming, out = Connection(int(argv[0]), writable=False), Connection(int(argv[1]), readable=False)
    task: Task[Chunk]
    task, holds = incoming.recv()
    held = _Held()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_drain, args=(incoming, tasks, held), daemon=True).start()
    try:
        turn = task.open()
    except AutomodelError as error:
        out.send(("error", error, 0))
        return
    while True:
        unit = tasks.get()
        held.report(out)
        if unit is not None:
            _answer(turn, unit, out, held if holds else None)


def run(argv: list[str]) -> None:
    """``main``, which ends quietly when the parent has enough."""
    try:
        main(argv)
    except BrokenPipeError:
        sys.exit(0)
