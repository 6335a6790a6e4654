"""``automodel chat``: a conversation in the terminal, or in a browser.

What a model writes may hold anything, terminal commands included: control characters are shown as escapes.
"""

from __future__ import annotations

import contextlib
import sys
import webbrowser

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.commands.generate import write
from automodel_cli.cli.options import Given, command
from automodel_cli.config.schema.results import TrustOptions
from automodel_cli.config.schema.serving import ChatConfig, ServeConfig

_QUOTES = '"""'


@command(
    ChatConfig,
    TrustOptions,
    arguments=("checkpoint",),
    examples=(
        "automodel chat runs/a",
        "automodel chat runs/a --web",
        "echo 'Hello' | automodel chat runs/a --temperature 0",
    ),
)
def chat(given: Given) -> None:
    """Talk to a checkpoint."""
    cfg, trust = given.load(ChatConfig), given.values["trust"] or ()
    worker.starting("chat: loading PyTorch ...", needs=cfg.checkpoint)
    if cfg.web:
        from automodel_cli.recipes import serve

        same = cfg.model_dump(include=set(ChatConfig.model_fields) & set(ServeConfig.model_fields))
        serve.run(ServeConfig(**same), say=console.say, trust=trust, opened=webbrowser.open)
        return
    from automodel_cli.recipes import chat as recipe

    recipe.run(cfg, Terminal(), trust=trust)


class Terminal:
    """Standard input and output, which may be files or pipes."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdin.isatty()
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  editing and history in input()

    def read(self) -> str | None:
        """A message: a line, lines that end with a backslash and the next, or lines between two of triple quotes."""
        try:
            line = self._line("> ")
            if line.strip() == _QUOTES:
                return "\n".join(iter(lambda: self._line("  "), _QUOTES))
            lines = [line]
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(self._line("  "))
            return "\n".join(lines)
        except EOFError:
            return None

    def _line(self, prompt: str) -> str:
        if self._is_terminal:
            try:
                return input(prompt)
            except KeyboardInterrupt:  # of a line that is being written
                typer.echo()
                return self._line(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def write(self, text: str) -> None:
        """A piece of an answer, at once."""
        write(text)

    def say(self, line: str) -> None:
        """A line on stderr."""
        console.print_error(line)
