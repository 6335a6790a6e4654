"""What tokenizers, tiktoken and gigatoken throw: bare Exceptions, and panics, which no ``except Exception`` sees.

A panic comes from a vocabulary that contradicts itself; the library has already written its own lines to stderr.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from automodel_cli.errors import AutomodelError, DataError, is_panic

_RESTORE = "restore the tokenizer's files, or make it again"


def is_failure(error: BaseException) -> bool:
    """Whether a library failed; interrupts, exits, lack of memory and our own errors are something else."""
    return is_panic(error) or (
        isinstance(error, Exception) and not isinstance(error, AutomodelError | MemoryError)
    )


def reason(error: BaseException) -> str:
    """The first line of what a library says, cut."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def named(error: BaseException, what: str, hint: str = _RESTORE) -> BaseException:
    """``error`` as one for people if a library failed, else itself: to be raised."""
    return DataError(f"{what}: {reason(error)}", hint) if is_failure(error) else error


@contextlib.contextmanager
def failures_named(what: str, hint: str = _RESTORE) -> Iterator[None]:
    """A failure inside becomes an error that says ``what``.

    Raises:
        DataError: a library failed.
    """
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise named(error, what, hint) from error
