"""Command-line options made from the schema: one for each field, with the field's name, docstring and default.

    @command(PlotConfig, arguments=("runs",), examples=("automodel plot runs/a",))
    def plot(cfg: PlotConfig) -> None: ...

Values are read as a YAML file's are, and checked by the model alone; what is wrong is told by the option's name.
A function that has a parameter ``context`` gets click's.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer
from typer.core import TyperCommand

from automodel_cli.cli import console, help_page
from automodel_cli.config.explain import alternatives, choices
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.base import Section, keys_of, reason_ignored
from automodel_cli.errors import AutomodelError

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

# One letter means the same in every command.
_LETTERS = {
    "config": "-c", "output": "-o", "output_dir": "-o", "output_path": "-o", "max_tokens": "-m", "prompt": "-p",
}  # fmt: skip
# What stands for a value in the help, where neither its type nor "VALUE" says enough.
_VALUES = {
    "checkpoint": "CKPT", "checkpoints": "CKPT...", "steps": "N,...", "weights": "X,...",
    "path": "PATH", "runs": "RUN...", "diff": "A B", "files": "FILE...",
    "config": "FILE", "dataset": "NAME|PATH", "input": "PATH...", "data": "PATH", "bigram": "PATH",
    "prompt": "TEXT", "prompt_file": "FILE", "stop": "TEXT", "title": "TEXT", "output": "PATH",
    "output_dir": "FOLDER", "output_path": "FOLDER", "output_prefix": "PREFIX", "temp_dir": "FOLDER",
    "chat_data": "FOLDER", "chat_answers": "FOLDER", "judge_url": "URL", "judge_model": "NAME",
    "bundle": "FOLDER", "folder": "FOLDER", "harness_path": "FOLDER", "tokenizer": "NAME|FOLDER",
    "set_name": "NAME", "split": "NAME", "name": "NAME", "text_key": "NAME", "json_keys": "NAME...",
    "lang": "NAME", "document": "file|line|TEXT", "step": "N|LATEST|BEST", "keep_columns": "NAME,...",
    "tasks": "core|gauntlet|chatcore|NAME,...", "harness": "NAME,...", "url": "URL", "device": "auto|cpu|cuda|mps",
    "trust": "NAME|FILE", "words": "COMMAND...", "key": "KEY", "time": "HH:MM:SS", "sbatch": "NAME=VALUE",
    "setup": "LINE", "logs": "FOLDER", "lead": "SECONDS", "timeout": "SECONDS", "source": "PATH",
    "samples": "FIRST:END", "pipeline": "PIPELINE.yaml", "from_step": "STEP",
    "preset": "PRESET", "val_data": "PATH", "results": "RESULTS|CSV", "where": "COLUMN=VALUE",
    "budget": "FLOPS", "budgets": "FLOPS", "grid": "KEY=[A,B]", "set": "KEY=VALUE", "launch": "FLAG=VALUE",
    "base": "FILE", "gpu": "NAME", "a": "A.yaml", "b": "B.yaml", "predict": "PARAMS:TOKENS",
    "host": "ADDRESS", "api_key": "KEY", "allowed_hosts": "NAME", "load": "FILE", "system": "TEXT", "port": "PORT",
    "into": "DIR", "partition": "NAME", "account": "NAME", "job_name": "NAME", "batch_size": "auto|N",
    "push_to_hub": "ACCOUNT/NAME", "revision": "BRANCH", "license": "NAME",
}  # fmt: skip
_PLACES = {"source": "CKPT", "run": "RUN|CKPT|FILE", "output": "FOLDER", "output_file": "OUT.gguf", "dataset": "INPUT"}
"""The same for values given by their place."""

_KEY = re.compile(r"(?<![\w/.-])[a-z]+(?:_[a-z]+)+(?![\w/.])")  # no part of a path

Model = TypeVar("Model", bound=Section)


class Command(TyperCommand):
    """A command that knows its schema, for the help and for completion."""

    models: tuple[type[Section], ...] = ()
    examples: tuple[str, ...] = ()
    usage: str = ""
    lists: tuple[str, ...] = ()
    """Options that take several words, as argparse's nargs="+" does and as a shell expands a pattern."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page that ``--help`` shows."""
        formatter.write(help_page.of_command(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """One option a word for ``lists``, which is what the parser knows."""
        return super().parse_args(ctx, repeat_options(args, self.lists))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Options, and where the command takes overrides the keys of the configuration and launch flags."""
        found = super().shell_complete(ctx, incomplete)
        if ctx.ignore_unknown_options:
            from automodel_cli.cli import complete

            found += [complete.item(word) for word in complete.overrides(incomplete, ctx.args)]
        return found


def repeat_options(args: Sequence[str], lists: Iterable[str]) -> list[str]:
    """``--json-keys a b`` -> ``--json-keys a --json-keys b``."""
    repeated: list[str] = []
    option, first = "", False
    for arg in args:
        if arg.startswith("-"):
            option, first = (arg, True) if arg in lists else ("", False)
        elif option and not first:
            repeated.append(option)
        else:
            first = False
        repeated.append(arg)
    return repeated


def show_json(value: Any) -> None:
    """A result for programs; what JSON cannot say (NaN) is null, as in the files that are written."""
    from automodel_cli.metrics.log_file import json_safe

    console.say(json.dumps(json_safe(value), indent=1))


@dataclass(frozen=True)
class Given:
    """What the command line gave: text by key, and a file."""

    values: Mapping[str, Any]
    file: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """What the help calls each key."""

    def of(self, model: type[Section]) -> dict[str, Any]:
        """What was given of a model's keys."""
        return {key: self.values[key] for key in model.keys() if self.values.get(key) is not None}  # noqa: SIM118

    def load(self, model: type[Model]) -> Model:
        """The model that file and options make.

        Raises:
            ConfigError: whatever does not fit, all of it, by the names of the help.
        """
        cfg = load_config(model, self.file, flags=self.of(model), names=self.names)
        for note in cfg.collect_notes():
            console.warn(note)
        return cfg

    @contextmanager
    def told_by_options(self) -> Iterator[None]:
        """What a recipe finds wrong with ``val_tokens`` is wrong with ``--val-tokens`` where that was given."""
        values = str(list(self.values.values()))
        keys = {key for key, value in self.values.items() if value and "_" in key and key not in values}

        def renamed(text: str) -> str:
            return _KEY.sub(lambda found: self.names[found[0]] if found[0] in keys else found[0], text)

        try:
            yield
        except AutomodelError as error:
            error.message, error.hint = renamed(error.message), renamed(error.hint)
            raise


def command(
    *models: type[Section],
    arguments: Sequence[str] = (),
    examples: Sequence[str] = (),
    usage: str = "",
    file: bool = True,
    overrides: bool = False,
    settings: Mapping[str, Any] | None = None,
    epilog: str = "",
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function that takes the validated model as ``cfg``; of several models, a ``Given``.

    Args:
        models: whose fields are the options; several where one command line may mean either.
        arguments: fields that are given by their place instead of an option.
        examples: lines for the help; a test runs them up to the recipe.
        usage: what stands behind the command's name; made of arguments and options where it is empty.
        file: whether ``-c FILE`` gives the settings.
        overrides: whether ``--section.key VALUE`` is passed on, as ``context.args``.
        settings: of click's context.
    """

    def make(function: Callable[..., Any]) -> Command:
        """The command of ``function``: its parameters are the models' fields, and the context if it takes that."""
        fields = [(model, name) for model in models for name in model.model_fields]
        names = {_key(model, name): _shown(model, name, arguments) for model, name in fields}
        parameters = _options(models, arguments, file=file)
        if "context" in inspect.signature(function).parameters:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters["context"] = inspect.Parameter("context", kind, annotation=typer.Context)

        def call(**values: Any) -> Any:
            by_key = {_key(model, name): values[name] for model, name in fields}
            given = Given(by_key, values.get("config") if file else None, names)
            with given.told_by_options():
                cfg = given if len(models) > 1 else given.load(models[0])
                return function(cfg, **{name: values[name] for name in ("context",) if name in values})

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        context = {**HELP_OPTIONS, **(TAKES_OVERRIDES if overrides else {}), **(settings or {})}
        made = _typer_command(call, parameters, context, epilog)
        made.models, made.examples, made.usage = models, tuple(examples), usage
        if not (arguments or overrides or settings):
            several = [param for param in made.params if getattr(param, "multiple", False)]
            made.lists = tuple(opt for param in several for opt in param.opts)
        return made

    return make


def _typer_command(
    call: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    context: Mapping[str, Any],
    epilog: str,
) -> Command:
    """A command of ``call``, which takes these parameters whatever its own signature says."""
    call.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    single = typer.Typer(add_completion=False)
    single.command(call.__name__, cls=Command, context_settings=dict(context), epilog=epilog)(call)
    return typing.cast(Command, typer.main.get_command(single))


def _key(model: type[Section], name: str) -> str:
    return keys_of(model, name)[0]


def _shown(model: type[Section], name: str, arguments: Sequence[str]) -> str:
    if name in arguments:
        return (_VALUES | _PLACES)[name].removesuffix("...")
    return "--" + _key(model, name).replace("_", "-")


def _options(models: Sequence[type[Section]], arguments: Sequence[str], *, file: bool) -> dict[str, inspect.Parameter]:
    """A parameter for each field, in the order of the help."""
    fields = {name: model for model in reversed(models) for name in model.model_fields}
    order = {name: model for model in models for name in model.in_order()}
    made = {name: _parameter(name, fields[name], name in arguments) for name in order}
    if file:
        option = typer.Option("--config", "-c", metavar="FILE", help="YAML file with these settings.")
        made["config"] = _optional("config", Path, option)
    return made


def _optional(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation: Any = Annotated[Optional[kind], option]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parameter(name: str, model: type[Section], is_argument: bool) -> inspect.Parameter:
    info = model.model_fields[name]
    kind = _kind(info.annotation)
    about: dict[str, Any] = {"metavar": None if kind is bool else _metavar(name, info.annotation)}
    if is_argument:
        about["metavar"] = (_VALUES | _PLACES)[name]
        option = typer.Argument(**about, autocompletion=_keys if name == "key" else None)
    else:
        if words := choices(info.annotation):
            about["autocompletion"] = lambda incomplete: [word for word in words if word.startswith(incomplete)]
        hidden = bool(reason_ignored(info))
        option = typer.Option(*_spellings(model, name, kind), **about, hidden=hidden)
    return _optional(name, kind, option)


def _keys(incomplete: str) -> list[str]:
    from automodel_cli.cli import complete

    return complete.keys(incomplete)


def _spellings(model: type[Section], name: str, kind: Any) -> list[str]:
    flags = ["--" + key.replace("_", "-") for key in keys_of(model, name)]
    if kind is bool:
        return [f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags]
    return [*flags, *([_LETTERS[name]] if name in _LETTERS else [])]


def _kind(annotation: Any) -> Any:
    """What the parser has to know of a field's type: a switch, several values, a pair, or one text."""
    kinds = [inner for inner in alternatives(annotation) if inner is not type(None)]
    origin, inner = typing.get_origin(kinds[0]), typing.get_args(kinds[0])
    if origin is tuple and len(inner) == 2 and inner[1] is not Ellipsis:
        return tuple[str, str]
    return bool if kinds == [bool] else list[str] if origin in (tuple, list, dict) else str


def _metavar(name: str, annotation: Any) -> str:
    letters = {int: "N", float: "X"}
    numbers = [letters[kind] for kind in alternatives(annotation) if kind in letters]
    return _VALUES.get(name) or "|".join([*choices(annotation), *numbers]) or "VALUE"
