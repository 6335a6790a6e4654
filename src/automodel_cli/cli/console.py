"""Console output: lines and tables on stdout, errors and warnings on stderr, progress bars on terminals.

On a terminal progress is a bar that lines scroll above; elsewhere it is a plain line now and then, and every line is
flushed, so that logs and pipes show it at once. rich is imported by the first table or bar, not before.

Names of files, keys, and what checkpoints and libraries say may hold escape codes: here, and only here, all of it is
made safe to show.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.errors import AutomodelError
from automodel_cli.metrics.lines import WIDTH
from automodel_cli.plain_text import without_controls
from automodel_cli.processes import own_rank
from automodel_cli.text import clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 10.0


@cache
def stdout() -> Console:
    """rich's console for results."""
    from rich.console import Console

    return Console(highlight=False)


def is_terminal() -> bool:
    """True where a bar can be drawn: stdout is a terminal that understands cursor movement."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns for a line of numbers: the terminal's, or as many as a log file's reader is likely to have."""
    return shutil.get_terminal_size().columns if is_terminal() else WIDTH


def say(line: str = "") -> None:
    """One line on stdout, as given but for control characters, at once."""
    line = without_controls(line)
    if is_terminal():
        stdout().print(line, markup=False, soft_wrap=True)
    else:
        print(line, flush=True)


def warn(line: str) -> None:
    """One line of warning on stderr."""
    print_error(f"warning: {line}")


def print_error(line: str) -> None:
    """One line on stderr, at once."""
    print(without_controls(line), file=sys.stderr, flush=True)


def clean_what_libraries_say() -> None:
    """Control characters in warnings and log records, which quote what they have read, are spelled out too."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        with contextlib.suppress(Exception):  # a library's own mistake in its format: logging reports it
            made.msg, made.args = without_controls(made.getMessage()), ()
        return made

    def warning(*args: Any, **kwargs: Any) -> str:
        return without_controls(format_warning(*args, **kwargs))

    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning


_QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings of c10d and gloo: sockets that close, names that have no IPv6 address
    "TF_CPP_MIN_LOG_LEVEL": "2",  # absl and TensorFlow, which libraries import where it is installed
    "GRPC_VERBOSITY": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "LMEVAL_LOG_LEVEL": "ERROR",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # and those of transformers ("Loading weights")
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",  # of a helper process that outlives a killed run
}


def quiet_libraries() -> None:
    """Errors of other libraries are shown, their warnings and bars are not. Before any of them is imported.

    What the user has set in the environment stays.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"torch\._(inductor|dynamo)\b")


# ------------------------------------------------------------------------------------------------ errors


def show_error(error: BaseException, *, debug: bool = False) -> int:
    """Print an error for people on stderr and return the exit code; a bug shows its traceback."""
    is_for_people = isinstance(error, (AutomodelError, OSError, MemoryError))
    if debug or not is_for_people:
        print_error("".join(traceback.format_exception(error)).rstrip())
    message, hint = message_and_hint(error)
    if not is_for_people:
        hint = "this is a bug in automodel: please report it with the lines above"
    here = own_rank()
    print_error(f"[rank {here.rank}] error: {message}" if here.size > 1 else f"error: {message}")
    if hint:
        print_error(f"  {hint}")
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """The exit code of a program that this error ends."""
    given: int | None = getattr(error, _GIVEN_CODE, None)
    if given is not None:
        return given
    return error.exit_code if isinstance(error, AutomodelError) else 1


def give_exit_code(error: BaseException, code: int) -> None:
    """End the program with another code, where a command has a meaning of its own for the usual one."""
    setattr(error, _GIVEN_CODE, code)


_GIVEN_CODE = "_automodel_exit_code"


def message_and_hint(error: BaseException) -> tuple[str, str]:
    """An error for people: what is wrong, and what to do about it (or nothing)."""
    if isinstance(error, AutomodelError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, ""
    if isinstance(error, MemoryError):
        return "out of memory", "lower step_scheduler.local_batch_size or the model's size"
    return f"{type(error).__name__}: {error}", ""


# ------------------------------------------------------------------------------------------------ tables


def facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A table of names and values; on a terminal long values go on below themselves."""
    cells = [(_cell(name), _cell(value)) for name, value in rows]
    column = max((len(name) for name, _ in cells), default=0) + 4
    room = stdout().width - column if is_terminal() else 0
    _styled((_cell(title), "bold"))
    for name, value in cells:
        lines = textwrap.wrap(value, room) if room > 0 else [value]
        _styled((f"  {name}".ljust(column), "cyan"), (f"\n{' ' * column}".join(lines), ""))


def _styled(*parts: tuple[str, str]) -> None:
    """A line of texts with their styles, which only a terminal shows."""
    if not is_terminal():
        print("".join(text for text, _ in parts), flush=True)
        return
    from rich.text import Text

    stdout().print(Text.assemble(*parts), soft_wrap=True)


def _cell(value: object) -> str:
    return without_controls(str(value))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table with headings; the columns named in ``right`` are aligned on their last character."""
    cells = [[_cell(cell) for cell in row] for row in [columns, *rows]]
    aligned_right = [column in right for column in columns]
    if title:
        _styled((_cell(title), "bold"))
    if not is_terminal():
        _plain_table(cells, aligned_right)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD)
    for heading, is_right in zip(cells[0], aligned_right, strict=True):
        grid.add_column(Text(heading), justify="right" if is_right else "left", overflow="fold")
    for row in cells[1:]:
        grid.add_row(*map(Text, row))
    stdout().print(grid)


def columns(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose columns of numbers are aligned on their last digit."""
    numbers = [
        heading
        for number, heading in enumerate(headings)
        if all(row[number][:1].isdigit() for row in rows if row[number])
    ]
    table(title, headings, rows, right=numbers)


def _plain_table(cells: Sequence[Sequence[str]], aligned_right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, aligned_right, strict=True)
        ]
        say("  ".join(aligned).rstrip())


# ---------------------------------------------------------------------------------------------- progress


class Progress:
    """Progress of one long job, as a callable ``(done, total, what)``; ``total`` 0 means not known.

    On a terminal a bar with the time left; otherwise a line at most every ten seconds, and one at the end.
    Use it as a context manager, so that the bar is gone before the next output.

    Args:
        unit: of the numbers; "" and ``shows_numbers=False``: only the share that is done is for people.
    """

    def __init__(
        self, title: str, *, unit: str = "", shows_numbers: bool = True, interval_s: float = PLAIN_INTERVAL_S
    ) -> None:
        self.title, self.unit, self.interval_s = without_controls(title), without_controls(unit), interval_s
        self._shows_numbers = shows_numbers
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._last_line_s = time.monotonic()
        self._last_done = -1
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, done: int, total: int = 0, what: str = "") -> None:
        """Report that ``done`` of ``total`` is finished."""
        what = without_controls(what)
        self._first = self._first or (time.monotonic(), done)
        if is_terminal():
            self._draw(done, total, what)
        elif self._line_is_due(done, total):
            self._last_line_s, self._last_done = time.monotonic(), done
            say(self._line(done, total, what))

    def _line_is_due(self, done: int, total: int) -> bool:
        finished = bool(total) and done >= total
        waited = time.monotonic() - self._last_line_s >= self.interval_s
        return done != self._last_done and (finished or waited)

    def _line(self, done: int, total: int, what: str) -> str:
        share = _share(done, total)
        parts = [f"{share} ({amount})" if share and (amount := self._amount(done, total)) else amount or share]
        left_s = self._left_s(done, total)
        parts += [what, "" if left_s is None else f"{clock(left_s)} left"]
        return f"{self.title}: {'  '.join(part for part in parts if part)}"

    def _amount(self, done: int, total: int) -> str:
        numbers = f"{done:,}/{total:,}" if total else f"{done:,}"
        return f"{numbers} {self.unit}".rstrip() if self._shows_numbers else ""

    def _left_s(self, done: int, total: int) -> float | None:
        """Seconds until the end at the rate since the first call: what an earlier run did took none of this one's."""
        assert self._first is not None
        at, first = self._first
        return (time.monotonic() - at) / (done - first) * (total - done) if first < done < total else None

    def _draw(self, done: int, total: int, what: str) -> None:
        columns = stdout().width
        bar_columns = _NARROW_BAR if columns < _NARROW else _WIDE_BAR
        if self._bar is None:
            self._bar = self._new_bar(bar_columns)
            self._task = self._bar.add_task(self.title, total=total or None, share="", rest="")
        assert self._task is not None
        room = columns - len(self.title) - bar_columns - len(" 100% 0:00:00 ") - 2
        rest = _as_many_as_fit([self._amount(done, total), *what.split(", ")], room)
        share = _share(done, total).rjust(4)
        self._bar.update(self._task, completed=done, total=total or None, share=share, rest=rest)
        self._bar.start()  # nothing where it has started

    def _new_bar(self, columns: int) -> RichProgress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=columns),
            TextColumn("{task.fields[share]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[rest]}", markup=False),
            console=stdout(),
            transient=True,
        )


_NARROW, _NARROW_BAR, _WIDE_BAR = 80, 10, 24


def _share(done: int, total: int) -> str:
    """Rounded down: 100% is the end."""
    return f"{100 * min(done, total) // total}%" if total else ""


def _as_many_as_fit(parts: Sequence[str], columns: int) -> str:
    """The first parts that ``columns`` have room for: a number is whole or not there."""
    kept = [part for part in parts if part]
    while kept and len(", ".join(kept)) > columns:
        kept.pop()
    return ", ".join(kept)


@contextmanager
def reporter(title: str, *, lines_tell_progress: bool = False) -> Iterator[Reporter]:
    """A recipe's reporter: lines, tables of facts, and a bar while the block runs.

    Args:
        lines_tell_progress: the recipe's own lines show how far it is (a training log), so where no bar can be
            drawn progress adds nothing.
    """
    with Progress(title) as progress:
        draw = is_terminal() or not lines_tell_progress
        yield Reporter(
            say=say,
            table=facts,
            columns=columns,
            progress=progress if draw else Reporter().progress,
            width=width,
        )
