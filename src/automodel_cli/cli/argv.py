"""Normal form of the command line, made of its tokens by one pure function.

Forms that mean the same:
    automodel pretrain llm -c cfg.yaml --nproc-per-node 8 --model.n_layer 4
    automodel --nproc-per-node 8 $(which automodel) pretrain llm -c cfg.yaml model.n_layer=4
    automodel cfg.yaml --nproc-per-node=8 --model.n_layer=4

Launch flags may stand anywhere (before a ``--``) and go by torchrun's names, with dashes or underscores. Tokens are
taken or passed on; none is dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from automodel_cli.errors import ConfigError

LAUNCH_FLAGS: dict[str, tuple[str, str]] = {
    "nproc-per-node": (
        "N|gpu|cpu|auto",
        "Processes on this machine; gpu: one per GPU, cpu: one per core, auto: gpu if there is one, else cpu",
    ),
    "nnodes": ("N|MIN:MAX", "Machines; MIN:MAX lets them come and go while the run continues"),
    "rdzv-endpoint": ("HOST:PORT", "Address of the rendezvous: one of the machines, the same on each"),
    "rdzv-id": ("NAME", "Name of the run, where several share an endpoint"),
    "rdzv-backend": ("c10d|static", "Kind of rendezvous: at an endpoint, or with fixed node ranks"),
    "rdzv-conf": ("KEY=VALUE,...", "Options of the rendezvous, as torchrun's"),
    "node-rank": ("N", "Rank of this machine, with fixed node ranks"),
    "master-addr": ("HOST", "The machine of rank 0, with fixed node ranks"),
    "master-port": ("PORT", "Port on that machine"),
    "max-restarts": ("N", "How many times all processes are restarted after one crashes"),
    "monitor-interval": ("SECONDS", "Time between two checks of the processes"),
    "shutdown-timeout": ("SECONDS", "Time for processes to save when they are stopped"),
    "local-addr": ("HOST", "Address of this machine for the others"),
    "log-dir": ("FOLDER", "Folder for the output of other ranks"),
}
"""torchrun's flags: the name of the value, and what it means; ``automodel help launch`` shows them."""
_SWITCHES = ("standalone",)
_WHOLE_NUMBERS = ("node-rank", "master-port", "max-restarts")
_YAML = (".yaml", ".yml")
_DOMAIN = "llm"


@dataclass(frozen=True)
class Invocation:
    """A command line in normal form.

    Attributes:
        arguments: command words first, then everything else in the order it was given.
        launch: torchrun's options by their dashed names, values as text (``standalone`` is ``"true"``).
        debug: whether errors show their traceback.
    """

    arguments: tuple[str, ...]
    launch: dict[str, str] = field(default_factory=dict)
    debug: bool = False

    @staticmethod
    def of(context: Any) -> Invocation:
        """That of a command's context; an empty one where the command was called in another way."""
        return context.obj if isinstance(context.obj, Invocation) else Invocation(())

    @property
    def of_workers(self) -> list[str]:
        """What the command line of each process is, which starts no more of them."""
        return [*self.arguments, *(["--debug"] if self.debug else [])]

    @property
    def wants_processes(self) -> bool:
        """True where the launch flags ask for more than the present process."""
        return any(self.launch.get(flag, "1") != "1" for flag in ("nproc-per-node", "nnodes"))


def parse_argv(argv: Sequence[str]) -> Invocation:
    """Sort a command line's tokens.

    Raises:
        ConfigError: a launch flag without a value, or with one that is no number; a script instead of a command.
    """
    rest, launch, debug = _take_flags(list(argv))
    if rest and PurePath(rest[0]).name.lower() == "automodel":  # AutoModel is a script of ours too
        rest = rest[1:]  # automodel --nproc-per-node 8 $(which automodel) pretrain llm ...
    arguments = _with_command(rest)
    _refuse_two_files(arguments)
    return Invocation(tuple(arguments), launch, debug)


def _refuse_two_files(arguments: list[str]) -> None:
    """click takes the last of two ``-c`` and says nothing of the first."""
    files, following = [], iter(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    for token in following:
        name, equals, value = token.partition("=")
        if name in ("-c", "--config"):
            files.append(value if equals else next(following, ""))
    if len(files) > 1:
        raise two_files(files[0], files[1])


def two_files(first: object, second: object) -> ConfigError:
    """The error for a command line that names two configuration files."""
    return ConfigError(
        f"two configuration files are given, {first} and {second}",
        "keep one of them; single keys can be set with --section.key VALUE",
    )


def _take_flags(tokens: list[str]) -> tuple[list[str], dict[str, str], bool]:
    rest: list[str] = []
    launch: dict[str, str] = {}
    debug = False
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == "--":
            rest += tokens[position - 1 :]
            break
        name, equals, value = token.removeprefix("--").partition("=")
        flag = name.replace("_", "-") if token.startswith("--") else ""
        if token == "--debug":
            debug = True
        elif flag in _SWITCHES and not equals:
            launch[flag] = "true"
        elif flag in LAUNCH_FLAGS:
            if not equals:
                value = tokens[position] if position < len(tokens) else ""
                position += 1
            launch[flag] = _checked(flag, value)
        elif near := _near_launch_flag(flag):
            raise ConfigError(f"unknown option {token}", f"did you mean --{near}?")
        else:
            rest.append(token)
    return rest, launch, debug


def _checked(flag: str, value: str) -> str:
    if not value or value.startswith("--"):
        raise ConfigError(f"--{flag} needs a value", f"for example --{flag} 8" if "n" in flag[:2] else "")
    number_expected = flag in _WHOLE_NUMBERS or flag == "nproc-per-node"
    words = ("auto", "gpu", "cpu", "xpu") if flag == "nproc-per-node" else ()
    if number_expected and not value.isdigit() and value not in words:
        choices = f" or one of {', '.join(words)}" if words else ""
        raise ConfigError(f"--{flag}: expected a whole number{choices}, found {value!r}")
    if flag == "nproc-per-node" and value == "0":
        raise ConfigError("--nproc-per-node: expected at least 1, found 0")
    return value


def _near_launch_flag(flag: str) -> str | None:
    """A misspelt launch flag: those have dashes inside and no dots, as no config key does."""
    if "-" not in flag or "." in flag:
        return None
    matches = difflib.get_close_matches(flag, LAUNCH_FLAGS, n=1, cutoff=0.85)
    return matches[0] if matches else None


def is_config_file(token: str) -> bool:
    """True for the path of a YAML file, which may stand where a command would."""
    return token.lower().endswith(_YAML) and not token.startswith("-") and "=" not in token


def _with_command(tokens: list[str]) -> list[str]:
    """Put the command that is meant in front: a configuration alone means ``pretrain llm``."""
    if not tokens:
        return tokens
    if tokens[0] == _DOMAIN and len(tokens) > 1 and tokens[1] == "pretrain":  # the oldest guides' order
        return ["pretrain", _DOMAIN, *tokens[2:]]
    if tokens[0].endswith(".py"):
        raise ConfigError(
            f"{tokens[0]} is a Python file, expected a YAML configuration",
            "put its settings into a YAML file; `automodel init` writes one to start from",
        )
    if is_config_file(tokens[0]):
        return ["pretrain", _DOMAIN, "--config", *tokens]
    if tokens[0] in ("-c", "--config") or tokens[0].startswith("--config="):
        return ["pretrain", _DOMAIN, *tokens]
    return tokens
