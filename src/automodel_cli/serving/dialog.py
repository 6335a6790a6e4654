"""A conversation in a terminal: what was said, commands that begin with a slash, and answers as they come."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from automodel_cli.corpus.conversations.conversation import Conversation, Message, parse_messages
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.files import write_json
from automodel_cli.generation.sampling import check_settings, mix
from automodel_cli.json_files import read_json
from automodel_cli.serving.engine import Piece, Request
from automodel_cli.serving.prompts import trimmed
from automodel_cli.serving.service import Service
from automodel_cli.text import plural

FORMAT = "automodel-conversation/1"
HELP = """\
/system [TEXT]      show or set what the model is told first
/retry              another answer to the last message
/reset              forget the conversation
/save FILE          write the conversation as JSON
/load FILE          go on with a saved one
/settings [K V]...  show or change temperature, top_k, top_p, max_tokens, seed (null: none)
/quit               end (also Ctrl-D)
A line that ends with a backslash goes on in the next; lines between two lines of \"\"\" are one message.
Ctrl-C ends an answer. A message that begins with // is one that begins with /."""
_KINDS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "max_tokens": int,
    "seed": int,
}


class Dialog:
    """A conversation with a service.

    Args:
        write: shows a piece of an answer.
        say: shows a line that is not part of the conversation.
    """

    def __init__(
        self, service: Service, *, write: Callable[[str], None], say: Callable[[str], None], system: str | None = None
    ) -> None:
        self.messages: list[Message] = []
        self.system = system or ""
        self.settings = service.defaults
        self._service, self._write, self._say = service, write, say
        self._answers = 0
        self._told_of_trimming = False

    def take(self, text: str) -> bool:
        """Do what the user says; False: the end."""
        name, _, rest = text.strip().partition(" ")
        try:
            if name in ("/quit", "/exit", "/q"):
                return False
            if name.startswith("/") and not name.startswith("//"):
                self._command(name, rest.strip())
            elif text.strip() or self._service.chat is None:
                self._ask(text[1:] if name.startswith("//") else text)
        except (AutomodelError, OSError) as error:
            self._say(f"error: {error}")
        return True

    def _command(self, name: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._say(HELP),
            "/system": self._set_system,
            "/retry": self._retry,
            "/reset": self._reset,
            "/clear": self._reset,
            "/save": self.save,
            "/load": self.load,
            "/settings": self._set,
        }
        if name not in commands:
            raise ConfigError(f"there is no command {name}", "/help lists them; // begins a message with a slash")
        if name in ("/save", "/load") and not rest:
            raise ConfigError(f"{name} needs the name of a file")
        commands[name](rest)

    def _set_system(self, text: str) -> None:
        self.system = text or self.system
        self._say(f"system: {self.system}" if self.system else "there is no system message")

    def _reset(self, _: str = "") -> None:
        self.messages.clear()
        self._say("the conversation is forgotten")

    def _retry(self, _: str) -> None:
        while self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if not self.messages:
            raise ConfigError("there is nothing to answer yet")
        self._answer()

    def save(self, path: str) -> None:
        """Write the conversation as JSON."""
        messages = [{"role": one.role, "content": one.content} for one in self.conversation]
        write_json(path, {"format": FORMAT, "model": self._service.name, "messages": messages})
        self._say(f"{plural(len(messages), 'message')} in {path}")

    def load(self, path: str) -> None:
        """Go on with a saved conversation.

        Raises:
            DataError: the file holds none.
        """
        saved = read_json(path, hint="name a file that /save wrote")
        messages = list(parse_messages(saved.get("messages") if isinstance(saved, dict) else saved))
        self.system = messages.pop(0).content if messages and messages[0].role == "system" else ""
        self.messages = messages
        self._say(f"{plural(len(messages), 'message')} from {path}")

    def _set(self, text: str) -> None:
        words = text.replace("=", " ").split()
        if len(words) % 2 or not set(words[::2]) <= _KINDS.keys():
            raise ConfigError(f"/settings takes names and values; the names are {', '.join(_KINDS)}")
        changed = replace(self.settings, **dict(map(_setting, words[::2], words[1::2])))
        check_settings(temperature=changed.temperature, top_k=changed.top_k, top_p=changed.top_p)
        self.settings = changed
        self._say("  ".join(f"{name} {'null' if (v := getattr(changed, name)) is None else v}" for name in _KINDS))

    @property
    def conversation(self) -> Conversation:
        """All of it, system message in front."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.messages)

    def _ask(self, text: str) -> None:
        self.messages.append(Message("user", text))
        try:
            self._answer()
        except AutomodelError:
            self.messages.pop()
            raise

    def _answer(self) -> None:
        """Show an answer as it comes and keep it, also where Ctrl-C ends it."""
        request = self._request()
        answer = ""
        try:
            for piece in self._stream(request):
                answer += piece
                self._write(piece)
        except KeyboardInterrupt:
            self._say(" (ended)")
        self._write("\n")
        self.messages.append(Message("assistant", answer))

    def _request(self) -> Request:
        service, settings = self._service, self.settings
        kept, _ = trimmed(service.prompter, self.conversation, service.room(settings))
        if len(kept) < len(self.conversation) and not self._told_of_trimming:
            self._told_of_trimming = True
            self._say("the model's context is full: it no longer sees the oldest messages")
        self._answers += 1
        if settings.seed is not None:  # the same words said twice are not answered with the same numbers
            settings = replace(settings, seed=mix(settings.seed, self._answers))
        return service.of_conversation(kept, settings, trim=False)

    def _stream(self, request: Request) -> Iterator[str]:
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        (ticket,) = self._service.engine.submit([request], [pieces.put])
        try:
            while True:
                piece = pieces.get()
                yield piece.text
                if piece.finish == "failed":
                    raise ConfigError(f"the model failed: {piece.error}")
                if piece.finish is not None:
                    return
        finally:
            ticket.cancel()


def _setting(name: str, value: str) -> tuple[str, Any]:
    try:
        return name, None if value in ("null", "none") and name != "max_tokens" else _KINDS[name](value)
    except ValueError as error:
        raise ConfigError(f"{name} is a number, not {value!r}") from error
