"""Errors that are for people: what was found, what was expected, what to do.

``assert`` is for our own invariants; anything a user can cause is one of these. The command line prints
``message`` and ``hint`` on stderr and exits with ``exit_code``; a traceback is for bugs and ``--debug``.
"""

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: stopped by a signal after a checkpoint; the same command goes on from there."""


class AutomodelError(Exception):
    """A problem the user can act on. ``message`` says found and expected, ``hint`` says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(AutomodelError):
    """The configuration or the command line is wrong; nothing was started."""

    exit_code = 2


class Interrupted(AutomodelError):
    """Stopped by a signal in an orderly way: the same command goes on.

    Attributes:
        saved: whether it got as far as saving first.
    """

    saved = False
    exit_code = EXIT_PREEMPTED


class DataError(AutomodelError):
    """A token file, corpus or raw text source is missing, damaged or does not fit."""


class CheckpointError(AutomodelError):
    """A checkpoint is missing, incomplete, damaged or does not fit the run."""


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up: its exception is no ``Exception``, so ``except`` lets it pass."""
    return type(error).__name__ == "PanicException"


def panic_message(error: BaseException) -> AutomodelError:
    """A panic that nobody expected, as an error that says what it was."""
    return AutomodelError(
        f"a library stopped with an internal error: {str(error)[:200]}",
        "--debug shows where; if one file or document does it, leave that out and report it to the library",
    )
