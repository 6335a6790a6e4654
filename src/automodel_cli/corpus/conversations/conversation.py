"""Conversations as they are found in data sets, and what a chat format makes of one.

| found                                                | read as                                              |
|------------------------------------------------------|------------------------------------------------------|
| ``messages``: [{role, content}, ...]                 | itself (OpenAI's form; a list of text parts is joined) |
| ``conversations``: [{from, value}, ...]              | itself (ShareGPT's names: human, gpt, ...)           |
| ``instruction``, optionally ``input``, ``output``    | a question (Alpaca's; input below it) and its answer |
| ``prompt``, ``completion`` (or ``response``)         | a question and its answer                            |

A ``system`` text beside a pair, or beside ``conversations`` (ShareGPT), comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from automodel_cli.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
TrainOn = Literal["assistant", "all"]
"""Which tokens are learned: what the assistant says with the end of its turn, or all."""

ROLES: tuple[Role, ...] = get_args(Role)
_ROLE_OF: Mapping[str, Role] = {
    **{role: role for role in ROLES},
    "human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system",
    "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
_HINT = "expected a list of {role, content} (or {from, value}) with roles system, user, assistant or tool"
_PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"))


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; ``mask`` says which of them are learned. Both have one length."""

    ids: list[int]
    mask: list[bool]


def parse_messages(value: Any) -> Conversation:
    """The turns of ``value``, a list of messages in either spelling, or a row that holds one.

    Raises:
        DataError: it is something else, has no turn, an unknown role, or content that is no text.
    """
    if isinstance(value, Mapping):
        return parse_row(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{_kind(value)} is no conversation", _HINT)
    return tuple(_message(turn) for turn in value)


def parse_row(row: Mapping[str, Any]) -> Conversation:
    """The conversation that a row of a data set holds, by whichever of the columns above it has.

    Raises:
        DataError: as :func:`parse_messages`, or it has none of them.
    """
    for key in ("messages", "conversations", "conversation"):
        if row.get(key) is not None:
            turns = parse_messages(row[key])
            return turns if turns[0].role == "system" else _with_system(row, turns)
    return parse_pair(row)


def parse_pair(row: Mapping[str, Any]) -> Conversation:
    """A question and its answer.

    Raises:
        DataError: it has no known pair of columns, or they hold no text.
    """
    for question, answer in _PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            asked = "\n\n".join(
                part for part in (checked_text(row[question]), checked_text(row.get("input") or "")) if part
            )
            return _with_system(row, (Message("user", asked), Message("assistant", checked_text(row[answer]))))
    columns = " or ".join("/".join(pair) for pair in _PAIRS)
    raise DataError(
        f"a row with {', '.join(sorted(map(str, row))[:8]) or 'no columns'} holds no conversation",
        f"expected messages, conversations, or {columns}",
    )


def _with_system(row: Mapping[str, Any], turns: Conversation) -> Conversation:
    system = checked_text(row.get("system") or "")
    return (Message("system", system), *turns) if system else turns


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"a message is {_kind(turn)}", _HINT)
    named = turn.get("role") if turn.get("role") is not None else turn.get("from")
    role = _ROLE_OF.get(named) if isinstance(named, str) else None
    if role is None:
        raise DataError(f"a message has the role {str(named)[:40]!r}", _HINT)
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    return Message(role, checked_text(content))


def checked_text(content: Any) -> str:
    """The text of a message; of OpenAI's parts those of text, which are all that there may be.

    Raises:
        DataError: it is something else, or text that UTF-8 cannot spell.
    """
    if isinstance(content, Sequence) and not isinstance(content, str):
        return "".join(_text_part(part) for part in content)
    if not isinstance(content, str):
        raise DataError(f"the content of a message is {_kind(content)}", "expected text")
    if not content.isascii():
        try:
            content.encode()
        except UnicodeEncodeError:
            raise DataError("the content of a message has a lone surrogate", "it is no text") from None
    return content


def _text_part(part: Any) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
        raise DataError(f"a message has a part of the kind {str(kind)[:40]!r}", "only text can be trained on")
    return checked_text(part.get("text"))


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "an empty list" if value == [] else f"of type {type(value).__name__}"
