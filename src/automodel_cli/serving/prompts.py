"""Conversations as prompts: in the format that the model was trained on, or as plain text for a base model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

from automodel_cli.corpus.conversations.conversation import Conversation
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import ConfigError


class Prompter(Protocol):
    """Turns conversations into prompts (``corpus.conversations.chat_format.ChatFormat`` is one)."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """What ends an answer."""
        ...

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids up to where the assistant begins to speak."""
        ...


class PlainText:
    """A base model goes on with a text: what was said, one after the other; a new line where the user goes on."""

    def __init__(self, tokenizer: Tokenizer, separator_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        ids = (separator_id, tokenizer.eot_id, tokenizer.bos_id)
        self._start = next((one for one in ids if one is not None), None)
        self.stop_ids = frozenset(one for one in ids[:2] if one is not None)

    def prompt(self, conversation: Conversation) -> list[int]:
        text = ""
        for message in conversation:
            text += ("\n" if text and message.role != "assistant" else "") + message.content
        return self.read(text)

    def read(self, text: str) -> list[int]:
        """Ids of a text; an empty one starts a new document.

        Raises:
            ConfigError: an empty one, and no token that starts a document.
        """
        ids = list(self._tokenizer.encode(text))
        if ids or self._start is None:
            if not ids:
                raise ConfigError("the prompt is empty, and the tokenizer has no token that starts a document")
            return ids
        return [self._start]


def trimmed(prompter: Prompter, conversation: Conversation, room: int) -> tuple[Conversation, list[int]]:
    """The conversation without its oldest turns, as few of them as fit ``room`` tokens, and its prompt.

    A turn is what the user says and all up to where they speak again. The system message in front and the last turn
    stay, so that the prompt may still be too long.
    """
    system = conversation[:1] if conversation and conversation[0].role == "system" else ()
    starts = [
        number for number, message in enumerate(conversation) if message.role == "user" and number >= len(system)
    ][1:]
    choices = [conversation, *(system + conversation[start:] for start in starts)]

    class Fits(Sequence[bool]):  # of the first, the second ... choice: False up to where it fits
        def __len__(self) -> int:
            return len(choices) - 1

        def __getitem__(self, number: Any) -> Any:
            return len(prompter.prompt(choices[number])) <= room

    kept = choices[bisect_left(Fits(), True)]
    return kept, prompter.prompt(kept)
