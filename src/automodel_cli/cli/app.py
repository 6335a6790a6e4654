"""Entry point of the command line: the table of commands, and how errors end the program.

Commands are looked up in a table and imported when they are called, so that ``automodel --help`` costs no more than
typer itself. Exit codes: 0 done, 1 failed, 2 wrong configuration or command line, 75 preempted after a checkpoint,
130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from automodel_cli import __version__
from automodel_cli.cli import console, help_page, worker
from automodel_cli.cli.argv import Invocation, parse_argv
from automodel_cli.device import prefer_huge_pages
from automodel_cli.errors import AutomodelError, ConfigError, is_panic, panic_message
from automodel_cli.processes import leave

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
WRONG_USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
_LAUNCHING = ("pretrain", "branch", "run", "eval", "slurm", "race")

# typer keeps its own copy of click in some versions: take the class from the exception it exports.
_ClickException: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


@dataclass(frozen=True)
class Entry:
    """One command: its line in the help, where it lives, the group it is shown in, and commands below it."""

    help: str
    module: str = ""
    attribute: str = ""
    panel: str = "Commands"
    commands: dict[str, Entry] = field(default_factory=dict)

    def shown(self) -> Any:
        """What stands for the command until it is called: its name and line, for lists and suggestions."""
        return TyperCommand(name=self.attribute, help=self.help, rich_help_panel=self.panel)


_DATA, _TRAIN, _LOOK, _HELP = "Data", "Training", "Results", "Help"
COMMANDS: dict[str, Entry] = {
    "preprocess": Entry(
        "Turn text into token files: nanogpt, megatron, chat, dedup, shuffle, index, tokenizer, verify.",
        panel=_DATA,
        commands={
            "nanogpt": Entry("Turn text into nanoGPT-style token files.", "preprocess.commands", "nanogpt"),
            "megatron": Entry(
                "Turn text into Megatron-Core's .bin and .idx files.", "preprocess.commands", "megatron"
            ),
            "chat": Entry("Turn conversations into token files.", "preprocess.commands", "chat"),
            "dedup": Entry("Leave out duplicates, near-duplicates and poor text.", "preprocess.dedup", "dedup"),
            "shuffle": Entry("Shuffle documents.", "preprocess.commands", "shuffle"),
            "index": Entry("Build the sample indices of a run on Megatron files.", "preprocess.index", "index"),
            "tokenizer": Entry("Train a byte-level BPE on your own text.", "preprocess.commands", "tokenizer"),
            "verify": Entry("Check token files against their manifest.", "preprocess.commands", "verify"),
        },
    ),
    "pretrain": Entry(
        "Train a language model: automodel pretrain llm -c cfg.yaml (or just automodel cfg.yaml).",
        "commands.pretrain", "pretrain", _TRAIN,
    ),
    "branch": Entry(
        "Go on from a checkpoint in a folder of its own: a cooldown, other data, another length.",
        "commands.branch", "branch", _TRAIN,
    ),
    "plan": Entry(
        "Show what a run would take: parameters, FLOPs, tokens, memory, time; needs no torch.",
        "commands.plan", "plan", _TRAIN,
    ),
    "init": Entry(
        "Write a starter YAML file; without a name, list the presets.", "commands.init", "init", _TRAIN
    ),
    "slurm": Entry(
        "Write a Slurm batch file: the run saves before its time limit and continues in the next job.",
        "commands.slurm", "slurm", _TRAIN,
    ),
    "quickstart": Entry(
        "Run the whole pipeline in five minutes on Python's sources.", "commands.quickstart", "quickstart", _TRAIN
    ),
    "run": Entry(
        "Run a file of commands, from text to a trained model; what is finished is skipped.",
        "commands.run", "run", _TRAIN,
    ),
    "eval": Entry(
        "Score a checkpoint: loss and bits per byte on token files, CORE, the Eval Gauntlet, harness tasks.",
        "commands.evaluate", "evaluate", _LOOK,
        {
            "compare": Entry("Compare two results files.", "commands.evaluate_tasks", "compare"),
            "download-bundle": Entry(
                "Download the data of the in-context tasks.", "commands.evaluate_tasks", "download_bundle"
            ),
        },
    ),
    "inspect-ckpt": Entry(
        "Show, verify and compare checkpoints; needs no torch.", "commands.inspect_ckpt", "inspect_ckpt", _LOOK
    ),
    "inspect-data": Entry(
        "Show the text that a run was trained on at a step: rows, files, documents.",
        "commands.inspect_data", "inspect_data", _LOOK,
    ),
    "watch": Entry("Show runs on a live page in the browser.", "commands.watch", "watch", _LOOK),
    "report": Entry("Write runs as one HTML file to send or keep.", "commands.watch", "report", _LOOK),
    "plot": Entry("Draw loss, learning rate and throughput of a run.", "commands.plot", "plot", _LOOK),
    "sweep": Entry(
        "Many runs, and scaling laws from them: automodel sweep run -c sweep.yaml.",
        panel=_LOOK,
        commands={
            "run": Entry("Run a grid of trainings, such as depths x budgets.", "commands.sweep", "run"),
            "fit": Entry("Fit a scaling law with error bars.", "commands.sweep", "fit"),
            "plot": Entry("Draw isoFLOP curves and the law.", "commands.sweep", "plot"),
        },
    ),
    "race": Entry(
        "Say whether one training run is better than another: automodel race A.yaml B.yaml.",
        "commands.race", "race", _LOOK,
    ),
    "generate": Entry("Generate text from a prompt.", "commands.generate", "generate", _LOOK),
    "chat": Entry("Talk to a checkpoint, in the terminal or the browser.", "commands.chat", "chat", _LOOK),
    "serve": Entry(
        "Serve a checkpoint: chat page and OpenAI-compatible API.", "commands.serve", "serve", _LOOK
    ),
    "export": Entry(
        "Export a checkpoint for transformers or llama.cpp: automodel export hf CKPT OUT.",
        panel=_LOOK,
        commands={
            "hf": Entry("A folder that transformers loads.", "commands.export", "hf"),
            "gguf": Entry("A file that llama.cpp and Ollama load.", "commands.export", "gguf"),
        },
    ),
    "average": Entry(
        "Average the weights of several checkpoints into one: automodel average RUN --last 5 --output DIR.",
        "commands.average", "average", _LOOK,
    ),
    "import": Entry(
        "Import a checkpoint of nanoGPT, litgpt or lingua for eval, generate and init_from.",
        "commands.import_checkpoint", "import_checkpoint", _LOOK,
    ),
    "doctor": Entry(
        "Check this machine: versions, devices, collectives, limits, disk, Hub.",
        "commands.doctor", "doctor", _HELP,
    ),
    "help": Entry(
        "Show the help of a command, or of the launch flags: automodel help launch.",
        "commands.help", "show_help", _HELP,
    ),
    "explain": Entry("Explain a configuration key.", "commands.help", "explain", _HELP),
}  # fmt: skip


class LazyGroup(TyperGroup):
    """Commands from the table; one is imported when it is called."""

    entries: dict[str, Entry] = COMMANDS
    own: Entry | None = None
    """What the group does itself where none of its commands is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the table's order."""
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What stands for the command; ``resolve_command`` brings the command itself."""
        return self.entries[cmd_name].shown() if cmd_name in self.entries else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was asked for and import it."""
        if ctx.resilient_parsing:  # a shell completes: the line has not been through argv.py
            with contextlib.suppress(ConfigError):
                args = list(parse_argv(args).arguments) or args
        self.commands = {name: entry.shown() for name, entry in self.entries.items()}  # for typer's suggestions
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and name:
            command = load_command(name, self.entries[name], rest, completing=ctx.resilient_parsing)
        return name, command, rest

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The commands; of one that has commands below it (eval), its own options as well."""
        found = super().shell_complete(ctx, incomplete)
        if self.own is not None:
            own = load_command(str(self.name), replace(self.own, commands={}))
            with own.make_context(self.name, [], parent=ctx.parent, resilient_parsing=True) as inner:
                found += own.shell_complete(inner, incomplete)
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page that ``--help`` shows."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.entries.items():
            panels.setdefault(entry.panel, []).append((name, entry.help))
        formatter.write(help_page.of_group(ctx.command_path, self.help or "", panels, self.get_params(ctx)))


def load_command(name: str, entry: Entry, rest: Sequence[str] = (), *, completing: bool = False) -> Any:
    """Import a command, or make the group of those below it where ``rest`` names one of them."""
    below = rest[0] in entry.commands if rest else completing
    if entry.commands and (below or not entry.module):
        group = LazyGroup(name=name, help=entry.help, no_args_is_help=True, context_settings=HELP_OPTIONS)
        group.entries, group.own = entry.commands, entry if entry.module else None
        return group
    return getattr(importlib.import_module(f"automodel_cli.cli.{entry.module}"), entry.attribute)


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"automodel {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, add_completion=True, context_settings=HELP_OPTIONS)


@app.callback()
def _automodel(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[  # taken out of the command line by argv.py, wherever it stands; here for the help
        bool, typer.Option("--debug", help="Show the traceback of an error. May appear anywhere.")
    ] = False,
) -> None:
    """Pretrain language models: text to token files, token files to a model, a model to scores.

    Every command has a --help page, and most read a YAML file with -c FILE.

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
            print(error.ctx.get_help(), flush=True)  # type: ignore[attr-defined]
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
    if invocation.launch and arguments[0] not in _LAUNCHING and arguments[:2] != ["sweep", "run"]:
        given = ", ".join(f"--{flag}" for flag in invocation.launch)
        raise ConfigError(
            f"{given}: only pretrain, branch, run, eval, sweep run and race start several processes",
            "leave the flag out",
        )
    result = command.main(args=arguments, prog_name="automodel", standalone_mode=False, obj=invocation)
    return result if isinstance(result, int) else 0


def _usage_error(error: Any) -> AutomodelError:
    """click's complaint about a command line, as one of ours."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "automodel"
    message = str(error.format_message() or error)
    see = f"see {where} --help"
    if context is not None and "unexpected extra argument" in message:
        words = message.rpartition("(")[2].rstrip(")")
        inputs = [param.opts[0] for param in context.command.params if param.opts[0] in ("--dataset", "--input")]
        meant = f"give it as {inputs[0]} {words}; " if inputs else ""
        return ConfigError(f"unexpected extra argument: {words}", meant + see)
    return ConfigError(message.rstrip("."), see)


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
    leave(run(arguments))
