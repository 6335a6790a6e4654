"""Worker processes: which one prints, where an error goes, and that none outlives the launcher.

A worker of our own launcher leaves its error in the file it was given; the launcher shows the first one, once. Under
another launcher (torchrun, srun) every rank has to speak for itself.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from automodel_cli.cli import console
from automodel_cli.errors import CheckpointError
from automodel_cli.launch.workers import ATTEMPT_VARIABLE, ERROR_FILE_VARIABLE, LAUNCHER_VARIABLE
from automodel_cli.processes import die_with, own_rank


def rank() -> int:
    """This process among those that a launcher started together; 0 without one."""
    return own_rank().rank


def is_started_again() -> bool:
    """Whether the launcher starts the same run once more, after a crash or with other machines."""
    return int(os.environ.get(ATTEMPT_VARIABLE) or os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def enter() -> None:
    """First thing in a process that may be a worker."""
    launcher = os.environ.pop(LAUNCHER_VARIABLE, None)
    if launcher is not None:
        die_with(int(launcher))
        faulthandler.enable()
    if rank() > 0 and ERROR_FILE_VARIABLE not in os.environ:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def starting(line: str, *, needs: str | None = None) -> None:
    """Print the first line of a command that takes seconds to load, once, on stderr.

    Args:
        needs: checkpoint that the command reads, looked for before anything is loaded.

    Raises:
        CheckpointError: it does not exist.
    """
    if needs is not None and not Path(needs).exists():
        raise CheckpointError(f"{needs} does not exist", "name an existing checkpoint, run folder or model folder")
    if rank() == 0 and ERROR_FILE_VARIABLE not in os.environ:
        console.print_error(line)


def show_error(error: BaseException, *, debug: bool = False) -> int:
    """Say what went wrong in the way that fits this process; the exit code."""
    file = os.environ.get(ERROR_FILE_VARIABLE)
    if file is None and (debug or rank() == 0):
        return console.show_error(error, debug=debug)
    message, hint = console.message_and_hint(error)
    said = {"rank": rank(), "time": time.time(), "message": message, "hint": hint}
    details = "".join(traceback.format_exception(error))
    path = Path(file or Path(tempfile.gettempdir(), f"automodel_rank_{rank()}_{os.getpid()}_error.txt"))
    path.write_text(f"{json.dumps(said)}\n\n{details}", encoding="utf-8")
    if file is None:
        where = "; ".join(filter(None, [hint, f"full traceback in {path}"]))
        console.print_error(f"[rank {rank()}] error: {message}\n  {where}")
    return console.exit_code(error)
