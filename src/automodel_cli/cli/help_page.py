"""Help pages: usage, what a command does, examples, options in groups with their defaults.

Lines wrap at words, and nothing is cut: what does not fit beside a name goes below it. Plain text with a little color
on terminals; neither rich nor a schema is imported for the list of commands.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from automodel_cli.cli import console

_MAX_WIDTH = 120
_INDENT = "  "
_OPTIONS, _ARGUMENTS = "Options", "Arguments"
Row = tuple[str, str]


class Command(Protocol):
    """What a page needs of a command (``options.Command``)."""

    models: Any
    examples: Any
    usage: str
    help: str | None
    epilog: str | None
    params: list[Any]

    def get_params(self, ctx: Any) -> list[Any]: ...


def of_command(command: Command, context: Any) -> str:
    """The page of one command."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    usage = command.usage or " ".join([*(_in_usage(command, param) for param in arguments), "[OPTIONS]"])
    groups: dict[str, list[Row]] = {_ARGUMENTS: [], **{title: [] for title in _titles(command)}, _OPTIONS: []}
    for param in command.get_params(context):
        if not getattr(param, "hidden", False):
            title = _ARGUMENTS if param in arguments else _title_of(command, param)
            groups[title].append(_row_of(command, param))
    sections = [(title, rows) for title, rows in groups.items() if rows]
    return page(f"{context.command_path} {usage}", command.help, command.examples, sections, command.epilog)


def of_group(path: str, summary: str, panels: Mapping[str, list[Row]], options: Iterable[Any] = ()) -> str:
    """The page of several commands; ``panels`` has their names and what they do."""
    own = [(_spelled(option), option.help or "") for option in options]
    sections = [*panels.items(), *([(_OPTIONS, own)] if own else [])]
    return page(f"{path} COMMAND [OPTIONS]", summary, (), sections, f"Run {path} COMMAND --help for details.")


def page(
    usage: str,
    about: str | None,
    examples: Sequence[str],
    sections: Iterable[tuple[str, Sequence[Row]]],
    epilog: str | None,
) -> str:
    """Put a page together for the width of this terminal (or ``COLUMNS``)."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    parts = [_colored(_wrapped(f"Usage: {usage}", width, hang=7), "Usage:", "1")]
    parts += [_wrapped(paragraph, width) for paragraph in _paragraphs(about)]
    if examples:
        shown = [_wrapped(example, width, indent=_INDENT, hang=6, end=" \\") for example in examples]
        parts.append("\n".join([_title("Examples" if len(examples) > 1 else "Example"), *shown]))
    sections = [(title, rows) for title, rows in sections if rows]
    column = _column([name for _, rows in sections for name, _ in rows], width)
    for title, rows in sections:
        parts.append("\n".join([_title(title), *(_row(name, text, column, width) for name, text in rows)]))
    parts += [_wrapped(paragraph, width) for paragraph in _paragraphs(epilog)]
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n") if part.strip()]


def _column(names: Sequence[str], width: int) -> int:
    """Where the texts beside the names begin: after most names, and within the first third of the line."""
    most = max(24, width // 3)
    return max((len(name) for name in names if len(name) <= most), default=0) + 2 * len(_INDENT)


def _row(name: str, text: str, column: int, width: int) -> str:
    lead = _INDENT + name
    left = _wrapped(name, width, indent=_INDENT, hang=4)
    body = _wrapped(text, width, indent=" " * column)
    if not text:
        return _colored(left, name)
    if len(lead) + 2 > column:
        return f"{_colored(left, name)}\n{body}"
    return _colored(lead.ljust(column), name) + body[column:]


def _wrapped(text: str, width: int, *, indent: str = "", hang: int = 0, end: str = "") -> str:
    """Lines of words; with ``end``, what ends all lines but the last, so that they can be pasted."""
    lines = textwrap.wrap(
        text,
        width - len(end),
        initial_indent=indent,
        subsequent_indent=indent + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(lines)


# ------------------------------------------------------------------------------------------------ one option


def _spelled(param: Any, default: str = "") -> str:
    """``--output-dir, -o FOLDER``; a switch that is off by default in the form that turns it on."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    short = [opt for opt in param.opts if not opt.startswith("--")]
    long = [opt for opt in param.opts if opt.startswith("--")][:1]
    if not param.is_flag:
        return ", ".join([*long, *short]) + f" {param.metavar or param.name.upper()}"
    return ", ".join([*("/".join([flag, *param.secondary_opts[:1]]) if default else flag for flag in long), *short])


def _row_of(command: Command, param: Any) -> Row:
    """An option's name, and what it does with its default behind."""
    models = [model for model in command.models if param.name in model.model_fields]
    if not models:
        return _spelled(param), _with(param.help or "", _typer_default(param))
    from automodel_cli.config.field_help import meaning_and_default

    text, default = meaning_and_default(models[0], param.name)
    others = [meaning_and_default(model, param.name)[1] for model in models[1:]]
    default = "; ".join([default, *(f"with {_titles(command)[-1].lower()}: {o}" for o in others if o != default)])
    also = [opt for opt in param.opts if opt.startswith("--")][1:]
    notes = [f"also {', '.join(also)}"] if also else []
    notes += ["may be repeated"] if getattr(param, "multiple", False) else []
    if models[0].model_fields[param.name].is_required():
        notes.append("required")
    elif default:
        notes.append(f"default: {'on' if default == 'true' else default}")
    return _spelled(param, default), _in_flags(command, _with(text, "; ".join(notes)))


def _in_usage(command: Command, param: Any) -> str:
    required = any(
        model.model_fields[param.name].is_required() for model in command.models if param.name in model.model_fields
    )
    return str(param.metavar) if required else f"[{param.metavar}]"


def _with(text: str, note: str) -> str:
    return f"{text} [{note}]" if note else text


def _typer_default(param: Any) -> str:
    shown = param.show_default if isinstance(param.show_default, str) else param.default
    return "" if shown in (None, False, "") or param.show_default is False else f"default: {shown}"


def _in_flags(command: Command, text: str) -> str:
    """``instead of `val_fraction` `` as ``instead of --val-fraction``; other words lose their backticks."""
    flags: dict[str, str] = {
        opt.removeprefix("--").replace("-", "_"): opt for param in command.params for opt in param.opts
    }
    return re.sub(r"`([^`]+)`", lambda found: flags.get(found[1], found[1]), text)


def _titles(command: Command) -> list[str]:
    return [title for model in command.models for title in model.panels]


def _title_of(command: Command, param: Any) -> str:
    groups = [item for model in command.models for item in model.panels.items()]
    return next((title for title, names in groups if param.name in names.split()), _OPTIONS)


# ----------------------------------------------------------------------------------------------------- color


def _title(text: str) -> str:
    return _colored(text, text, "1")


def _colored(line: str, part: str, code: str = "36") -> str:
    if not console.is_terminal() or os.environ.get("NO_COLOR"):
        return line
    return line.replace(part, f"\x1b[{code}m{part}\x1b[0m", 1)
