import contextlib
import io
import logging
import re
import warnings
from pathlib import Path

import pytest

from automodel_cli.cli import console
from automodel_cli.errors import AutomodelError, CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def on_a_terminal():
    """What is printed meanwhile goes to a terminal, which is yielded."""
    screen = Terminal()
    console.stdout.cache_clear()
    with contextlib.redirect_stdout(screen):
        yield screen
    console.stdout.cache_clear()


def test_an_error_is_message_and_hint_on_stderr(capsys):
    assert console.show_error(ConfigError("found x, expected y", "write y")) == 2
    assert console.show_error(CheckpointError("no checkpoint")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: found x, expected y\n  write y\nerror: no checkpoint\n"


def test_debug_adds_the_traceback(capsys):
    try:
        raise AutomodelError("told")
    except AutomodelError as error:
        console.show_error(error, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_says_that_it_is_one(capsys):
    try:
        raise KeyError("lost")
    except KeyError as error:
        assert console.show_error(error) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "error: KeyError: 'lost'" in printed
    assert "this is a bug in automodel" in printed


def test_errors_of_the_system_are_one_line(capsys):
    try:
        Path("/nonexistent/file").read_text()
    except OSError as error:
        assert console.show_error(error) == 1
    assert capsys.readouterr().err == "error: No such file or directory: /nonexistent/file\n"


def test_several_processes_say_which_of_them_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    console.show_error(ConfigError("no"))
    assert capsys.readouterr().err == "[rank 3] error: no\n"


def test_lines_are_printed_as_they_are(capsys):
    console.say("loss [bold]1.0[/bold] :smile: " + "x" * 300)
    console.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == "loss [bold]1.0[/bold] :smile: " + "x" * 300 + "\n"
    assert captured.err == "warning: careful\n"


def test_lines_on_a_terminal_too():
    with on_a_terminal() as screen:
        console.say("loss [bold]1.0[/bold] " + "x" * 300)
    assert screen.getvalue() == "loss [bold]1.0[/bold] " + "x" * 300 + "\n"


def test_plain_tables(capsys):
    console.facts("run", [("steps", "10"), ("tokens seen", "[5]")])
    console.table("sets", ["name", "loss"], [["a", "1.5"], ["longer", "10.25"]], right=["loss"])
    assert capsys.readouterr().out.splitlines() == [
        "run",
        "  steps        10",
        "  tokens seen  [5]",
        "sets",
        "name     loss",
        "a         1.5",
        "longer  10.25",
    ]


def test_tables_on_a_terminal_hold_the_same_text():
    with on_a_terminal() as screen:
        console.facts("run", [("steps", "[10]")])
        console.table("sets", ["name", "loss"], [["a", "[1.5]"]])
        console.table("", ["name"], [])
    for text in ("run", "steps", "[10]", "sets", "name", "loss", "[1.5]"):
        assert text in screen.getvalue()


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    with console.Progress("reading", unit="documents", interval_s=0) as progress:
        progress(1, 4)
        progress(1, 4)
        progress(4, 4, "done")
    assert capsys.readouterr().out.splitlines() == [
        "reading: 25% (1/4 documents)",
        "reading: 100% (4/4 documents)  done",
    ]
    with console.Progress("reading", interval_s=3600) as progress:
        for done in range(1, 1000):
            progress(done, 0)
        progress(1000, 1000)
    assert capsys.readouterr().out.splitlines() == ["reading: 100% (1,000/1,000)"]


def test_progress_on_a_terminal_is_a_bar_that_goes_away():
    with on_a_terminal() as screen, console.Progress("reading") as progress:
        progress(1, 4, "file [a]")
        console.say("a line above the bar")
        progress(4, 4)
    assert "a line above the bar" in screen.getvalue()
    assert progress._bar is None


def test_progress_says_what_is_left_at_this_runs_own_rate(capsys, monkeypatch):
    """A run that goes on at 90% has not done those in its first second."""
    clock = iter([0.0, 10.0, 10.0, 10.0, 15.0, 15.0, 15.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.Progress("writing", shows_numbers=False, interval_s=0) as progress:
        progress(900, 1000, "9 documents")
        progress(950, 1000, "10 documents")
    assert capsys.readouterr().out.splitlines() == [
        "writing: 90%  9 documents",
        "writing: 95%  10 documents  0:00:05 left",
    ]


@pytest.mark.parametrize(("columns", "shown"), [(60, ""), (80, "5,723 documents"), (120, "1,586,381 tokens")])
def test_a_narrow_pane_keeps_share_and_time_and_whole_numbers(columns, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with on_a_terminal() as screen, console.Progress("writing tokens", shows_numbers=False) as progress:
        progress(996, 1000, "5,723 documents, 1,586,381 tokens, 1.7 MB/s")
        assert progress._bar is not None
        progress._bar.refresh()
    line = next(line for line in screen.getvalue().split("\r") if "writing tokens" in line)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip("\n")
    assert " 99% -:--:--" in plain and shown in plain
    assert len(plain.rstrip()) <= columns
    assert set(re.findall(r"[\d,]{3,}", plain)) <= {"5,723", "1,586,381"}


def test_the_voice_of_a_recipe(capsys):
    with console.reporter("training", lines_tell_progress=True) as reporter:
        reporter.say("step 1")
        reporter.table("plan", [("steps", "1")])
        reporter.progress(1, 1, "loss")
    assert capsys.readouterr().out.splitlines() == ["step 1", "plan", "  steps  1"]


HOSTILE = "run\x1b[2J\x1b]0;title\x07\x9b31m\u202e[bold red]name"


def everything_is_said(terminal: bool) -> None:
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.facts(HOSTILE, [(HOSTILE, HOSTILE)])
    console.table(HOSTILE, [HOSTILE], [[HOSTILE]])
    console.columns(HOSTILE, [HOSTILE], [[HOSTILE]])
    console.show_error(ConfigError(HOSTILE, HOSTILE))
    console.show_error(FileNotFoundError(2, "No such file", HOSTILE))
    console.show_error(ValueError(HOSTILE))
    with console.Progress(HOSTILE, unit=HOSTILE, interval_s=0) as progress:
        progress(1, 2, HOSTILE)
        progress(2, 2, HOSTILE)


@pytest.mark.parametrize("terminal", [False, True])
def test_no_escape_code_of_others_reaches_the_terminal(terminal, monkeypatch, capsys):
    monkeypatch.setattr(console, "is_terminal", lambda: terminal)
    console.stdout.cache_clear()
    everything_is_said(terminal)
    console.stdout.cache_clear()
    said = "".join(capsys.readouterr())
    assert said.count("[bold red]name") + said.count("[bold") >= 10
    for code in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e"):
        assert code not in said


def test_what_libraries_say_is_cleaned_too(capsys):
    factory, form = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        console.clean_what_libraries_say()
        record = logging.getLogRecordFactory()("x", 30, "x.py", 1, "model %s", (HOSTILE,), None)
        assert "\x1b" not in record.getMessage()
        assert "\x1b" not in warnings.formatwarning(HOSTILE, UserWarning, "x.py", 1)
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = form
