"""Target: the name of a callable and its arguments, as an open section of a file gives them.

A target is only data. Nothing is imported to make one; `instantiate` decides what the name may mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGET_KEY = "_target_"
REDACTED = "***"
# Whole names only: bos_token and tokenizer are no secrets.
_SECRET_KEYS = frozenset({
    "token", "hf_token", "use_auth_token", "auth_token", "access_token", "api_key", "apikey", "wandb_api_key",
    "password", "passwd", "secret", "secret_key", "authorization",
})  # fmt: skip


def is_secret(key: object) -> bool:
    """True where the value of ``key`` must not be printed or saved."""
    return str(key).lower() in _SECRET_KEYS


class Placeholder(str):
    """The text of a value that comes from the environment, as it was written; ``quoted`` if it stood in quotes."""

    quoted = False


@dataclass
class Written:
    """How a value was written: its place (``cfg.yaml:12``), spelling without quotes, and placeholder if it is one."""

    where: str = ""
    text: str | None = None
    placeholder: Placeholder | None = None


class Located:
    """A mapping or a list of a file: remembers where it was written, and how each of its values was."""

    def __init__(self, *args: Any, where: str = "", written: Mapping[Any, Written] | None = None) -> None:
        super().__init__(*args)
        self.where = where
        self.written = dict(written or {})


class LocatedDict(Located, dict[str, Any]):
    """A mapping of a file."""

    def put(self, key: str, value: Any, written: Written) -> None:
        """Set a value."""
        self[key], self.written[key] = value, written

    def remove(self, key: str) -> None:
        """Forget a value, if it is there."""
        self.pop(key, None)
        self.written.pop(key, None)


class LocatedList(Located, list[Any]):
    """A list of a file."""

    def put(self, index: int, value: Any, written: Written) -> None:
        """Set a value, or add it where ``index`` is one past the end."""
        self[index : index + 1], self.written[index] = [value], written


@dataclass(frozen=True)
class Target:
    """``_target_: name`` with its other keys; ``where`` is the place of the name in the user's file.

    Nested mappings that carry ``_target_`` are Targets too, in lists as well. ``key_where`` maps a dotted
    argument path to the place it was written.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    key_where: dict[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def parse(value: Any, *, default_name: str | None = None) -> Target:
        """Read a mapping with ``_target_`` (or take ``default_name`` where it has none).

        Raises:
            ValueError: not a mapping, no name, or a name that is not text.
        """
        if isinstance(value, Target):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping with _target_, found {describe_value(value)}")
        name = value.get(TARGET_KEY, default_name)
        if name is None:
            raise ValueError("a _target_ is needed: the import path of the callable to use")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"_target_ must be a name, found {describe_value(name)}")
        arguments = {str(key): _parse_nested(item) for key, item in value.items() if key != TARGET_KEY}
        key_where = {key: written.where for key, written in getattr(value, "written", {}).items()}
        where = str(key_where.get(TARGET_KEY) or getattr(value, "where", ""))
        return Target(name.strip(), arguments, where, key_where)

    def to_mapping(self) -> dict[str, Any]:
        """The mapping this target was read from."""
        return {TARGET_KEY: self.name, **{key: plain(item) for key, item in self.arguments.items()}}


def _parse_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        if TARGET_KEY in value:
            return Target.parse(value)
        return LocatedDict(
            {key: _parse_nested(item) for key, item in value.items()},
            where=getattr(value, "where", ""),
            written=getattr(value, "written", {}),
        )
    if isinstance(value, (list, tuple)):
        return [_parse_nested(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """``value`` with every Target and mapping inside it as plain dicts and lists."""
    if isinstance(value, Target):
        return value.to_mapping()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def describe_value(value: Any) -> str:
    """A value as a reader of the file would name it: ``null``, ``the text 'x'``, ``a mapping``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = value if len(value) <= 60 else value[:57] + "..."
        return f"the text {shown!r}"
    if isinstance(value, (Mapping, Target)):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)
