"""The one entry point: which commands there are, how they are found, and how every error leaves the program.

Commands are looked up in a table and imported when they are called, so that ``automodel --help`` costs no more than
typer itself. Exit codes: 0 done, 1 failed, 2 wrong configuration or command line, 75 preempted after a checkpoint,
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from automodel_cli import __version__
from automodel_cli.cli import console, worker
from automodel_cli.cli.argv import Invocation, parse_argv
from automodel_cli.device import prefer_huge_pages
from automodel_cli.errors import AutomodelError, ConfigError, is_panic, panic_message

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
WRONG_USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

# typer keeps its own copy of click in some versions: take the class from the exception it exports.
_ClickException: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


@dataclass(frozen=True)
class Entry:
    """One command: where it lives, its line in the help, and the group it is shown in."""

    module: str
    attribute: str
    help: str
    panel: str


_DATA, _TRAIN, _LOOK = "Data", "Training", "Results"
COMMANDS: dict[str, Entry] = {
    "preprocess": Entry(
        "automodel_cli.cli.preprocess",
        "app",
        "Text to token files: nanogpt, megatron, shuffle, index, tokenizer, verify.",
        _DATA,
    ),
    "pretrain": Entry(
        "automodel_cli.cli.pretrain",
        "pretrain",
        "Train a language model: automodel pretrain llm -c cfg.yaml (or just automodel cfg.yaml).",
        _TRAIN,
    ),
    "eval": Entry(
        "automodel_cli.cli.evaluate",
        "evaluate",
        "Score a checkpoint: loss and bits per byte on token files, CORE, the Eval Gauntlet, harness tasks.",
        _LOOK,
    ),
    "inspect-ckpt": Entry(
        "automodel_cli.cli.inspect_ckpt",
        "inspect_ckpt",
        "Show, verify and compare checkpoints; needs no torch.",
        _LOOK,
    ),
    "plot": Entry(
        "automodel_cli.cli.plot",
        "plot",
        "Draw loss, learning rate and throughput of a run.",
        _LOOK,
    ),
    "generate": Entry(
        "automodel_cli.cli.generate",
        "generate",
        "Continue a prompt with a checkpoint.",
        _LOOK,
    ),
    "init": Entry(
        "automodel_cli.cli.init",
        "init",
        "Write a YAML file to start from; without a name: list the presets.",
        _TRAIN,
    ),
    "slurm": Entry(
        "automodel_cli.cli.slurm",
        "slurm",
        "Write a batch file for Slurm: saves before its time is over, goes on in the next job.",
        _TRAIN,
    ),
    "doctor": Entry(
        "automodel_cli.cli.doctor",
        "doctor",
        "Why does it not run here? Versions, devices, collectives, limits, disk, hub.",
        _LOOK,
    ),
    "export": Entry(
        "automodel_cli.cli.export",
        "app",
        "A checkpoint as a folder that transformers loads: automodel export hf CKPT OUT.",
        _LOOK,
    ),
    "import": Entry(
        "automodel_cli.cli.import_checkpoint",
        "import_checkpoint",
        "A checkpoint of nanoGPT, litgpt or lingua as a folder that eval, generate and init_from take.",
        _LOOK,
    ),
    "quickstart": Entry(
        "automodel_cli.cli.quickstart",
        "quickstart",
        "All of it in five minutes, on this machine's own Python sources.",
        _TRAIN,
    ),
}


class LazyGroup(TyperGroup):
    """A group that lists commands from the table and imports one only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that carries the help line; ``resolve_command`` brings the command itself."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(name=cmd_name, help=entry.help, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was asked for and import it."""
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # for typer's suggestions
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name else command, rest


def load_command(name: str) -> Any:
    """Import a command and make typer's object of it.

    Raises:
        ConfigError: this version does not have it.
    """
    entry = COMMANDS[name]
    try:
        found = getattr(importlib.import_module(entry.module), entry.attribute)
    except ModuleNotFoundError as error:
        if error.name != entry.module:
            raise
        raise ConfigError(f"automodel {name} is not part of this version", "see automodel --help") from None
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    options: dict[str, Any] = {"context_settings": HELP_OPTIONS}
    options |= getattr(sys.modules[entry.module], "COMMAND_OPTIONS", {})
    single = typer.Typer(add_completion=False)
    single.command(name, **options)(found)
    return typer.main.get_command(single)


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"automodel {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    add_completion=True,
    context_settings=HELP_OPTIONS,
)


@app.callback()
def _automodel(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[  # taken out of the command line by argv.py, wherever it stands; here for the help
        bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")
    ] = False,
) -> None:
    """Pretrain language models: text to token files, token files to a model, a model to scores.

    Each command explains itself with --help and reads a YAML file with -c FILE.

    Exit codes: 0 done, 1 failed, 2 wrong configuration, 75 preempted after a checkpoint.
    """


def run(argv: Sequence[str]) -> int:
    """Run one command line and return the exit code; errors are printed, never raised."""
    debug = "--debug" in argv
    worker.enter()
    prefer_huge_pages()
    try:
        invocation = parse_argv(argv)
        code = _call(invocation)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its help is the answer
            console.say(str(error).rstrip())
            return WRONG_USAGE
        return worker.show_error(_usage_error(error), debug=debug)
    except typer.Abort:
        return 1
    except Exception as error:
        return worker.show_error(error, debug=debug)
    except BaseException as error:
        if not is_panic(error):
            raise
        return worker.show_error(error if debug else panic_message(error), debug=debug)
    return code


def _call(invocation: Invocation) -> int:
    command = typer.main.get_command(app)
    arguments = list(invocation.arguments)
    if not arguments:
        command.main(args=["--help"], prog_name="automodel", standalone_mode=False)
        return WRONG_USAGE
    if invocation.launch and arguments[0] not in ("pretrain", "eval", "slurm"):
        given = ", ".join(f"--{flag}" for flag in invocation.launch)
        raise ConfigError(f"{given}: only pretrain and eval start several processes", "leave it out")
    result = command.main(args=arguments, prog_name="automodel", standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else 0


def _usage_error(error: Any) -> AutomodelError:
    """click's complaint about a command line, as one of ours."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "automodel"
    message = str(error.format_message() or error)
    return ConfigError(message.rstrip("."), f"{where} --help lists what there is")


def _silence_stdout() -> None:
    """Nobody reads on: give the interpreter's last flush somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_children_out_of_the_current_folder() -> None:
    """No Python that we or a library start imports from there, unless the sources themselves are run from it."""
    try:
        runs_from_sources = sys.path[:1] in ([""], [str(Path.cwd())])
    except FileNotFoundError:  # the folder was removed
        runs_from_sources = False
    if not runs_from_sources:
        os.environ.setdefault("PYTHONSAFEPATH", "1")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    console.clean_what_libraries_say()
    if "--debug" not in (arguments := sys.argv[1:] if argv is None else list(argv)):
        console.quiet_libraries()
    _keep_children_out_of_the_current_folder()
    sys.exit(run(arguments))
