"""What a Slurm batch file is made of, checked so that a value cannot become other options or lines of shell."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.plain_text import command_line

_NOT_IN_AN_OPTION = re.compile(r"[\s\x00-\x1f\x7f\"'`$\\]")


def plain_name(name: str) -> str:
    """A name of ours for a job, without what cannot stand in a batch file."""
    return _NOT_IN_AN_OPTION.sub("_", name)


def directives(values: Mapping[str, str], further: Sequence[str] = ()) -> list[str]:
    """The ``#SBATCH`` lines of options by name; ``further`` ones are ``NAME=VALUE`` of the user's own and win.

    Raises:
        ConfigError: a value could become other options, or lines of their own.
    """
    return [_option(name, value) for name, value in {**values, **dict(map(_further, further))}.items()]


def one_line(line: str) -> str:
    """A line of shell of the user's own, from the command line.

    Raises:
        ConfigError: it is more than one line.
    """
    if not line.isprintable():
        raise ConfigError(f"{line!r} is not one line", "give --setup once for each line")
    return line


def make_log_folder(folder: str) -> None:
    """Make the folder of a job's output: Slurm does not, and such a job ends without a word.

    Raises:
        AutomodelError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the log folder {folder}: {error.strerror}"
        raise AutomodelError(message, "name another with --logs") from None


def submit(path: Path) -> str:
    """Hand the file to ``sbatch``; its answer.

    Raises:
        AutomodelError: there is no sbatch, or it refused.
    """
    try:
        done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        raise AutomodelError(
            "there is no sbatch on this machine", f"on a login node: {command_line(['sbatch', path])}"
        ) from None
    if done.returncode:
        raise AutomodelError(f"sbatch refused {path}: {done.stderr.strip()}", "check the #SBATCH lines in it")
    return done.stdout.strip()


def _option(name: str, value: str) -> str:
    """One line for sbatch, which reads it as words: what holds more than one, or shell text, is refused."""
    if _NOT_IN_AN_OPTION.search(value):
        raise ConfigError(
            f"{name} {value!r} cannot be written in a batch file",
            "leave out spaces, quotes, $, \\ and line ends",
        )
    return f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}"


def _further(item: str) -> tuple[str, str]:
    name, _, value = item.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", name):
        raise ConfigError(f"--sbatch: expected NAME=VALUE, found {item!r}", "for example --sbatch qos=long")
    return name, value
