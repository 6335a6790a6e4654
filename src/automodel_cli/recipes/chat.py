"""Talking to a checkpoint in the terminal: load it, then answer until there is nothing more to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from automodel_cli.assembly.answering import open_service
from automodel_cli.config.schema.serving import ChatConfig
from automodel_cli.serving.dialog import Dialog


class Terminal(Protocol):
    """Where the user is."""

    def read(self) -> str | None:
        """What the user says next; None at the end."""
        ...

    def write(self, text: str) -> None:
        """A piece of an answer."""
        ...

    def say(self, line: str) -> None:
        """A line about the conversation, not of it."""
        ...


def run(cfg: ChatConfig, terminal: Terminal, *, trust: Sequence[str] = ()) -> None:
    """Answer what ``terminal`` reads.

    Raises:
        CheckpointError, ConfigError, DataError: as ``open_service``, or the conversation to load is none.
    """
    with open_service(cfg, trust=trust) as (service, notes):
        for note in notes:
            terminal.say(note)
        dialog = Dialog(service, write=terminal.write, say=terminal.say, system=cfg.system)
        if cfg.load is not None:
            dialog.load(cfg.load)
        kind = "chat" if service.chat else "a base model: it continues your text"
        terminal.say(f"{service.name} ({kind}). /help lists commands, /quit ends.")
        _talk(dialog, terminal.read)


def _talk(dialog: Dialog, read: Callable[[], str | None]) -> None:
    while (text := read()) is not None:
        if not dialog.take(text):
            return
