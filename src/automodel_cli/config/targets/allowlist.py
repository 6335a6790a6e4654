"""Allowlist of targets: whether a name may be used in a place, decided from the name alone; nothing is imported.

In order: old names are translated; our own names are a closed list; a foreign name has to match its role's pattern;
anything else, files included, runs only if the user trusted it by name or file (``--trust``). Arguments that make a
library fetch and run code count as code too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from automodel_cli import doors
from automodel_cli.config.problems import did_you_mean
from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.roles import ROLES, Role
from automodel_cli.config.targets.target import Target, describe_value
from automodel_cli.plain_text import for_shell

_LIBRARIES = ("torch", "transformers", "datasets", "numpy", "torchdata")
_FILE_TARGET = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\Z")


class NotAllowed(ValueError):
    """The name may not be used there; the text says why and what would help."""


class Trust:
    """What the user allows by name: modules or callables (``my_models``), files, hub repositories."""

    def __init__(self, entries: Sequence[str] = ()) -> None:
        self._names = frozenset(entry.removesuffix(".") for entry in entries)
        self._files = frozenset(
            Path(entry.rpartition(".py:")[0] + ".py" if ".py:" in entry else entry).resolve() for entry in entries
        )

    def allows_name(self, name: str) -> bool:
        """True where ``name`` or a module it is in was trusted."""
        parts = name.split(".")
        return any(".".join(parts[:length]) in self._names for length in range(1, len(parts) + 1))

    def lists(self, name: str) -> bool:
        """True where this very name was given, so that no doubt is left about what was meant."""
        return name in self._names

    def allows_file(self, path: str | Path) -> bool:
        """True where this very file was trusted, however its path was written."""
        return Path(path).resolve() in self._files

    def allows_source(self, source: str) -> bool:
        """True where a hub repository or a folder was trusted."""
        return source in self._names or Path(source).resolve() in self._files


@dataclass(frozen=True)
class Allowed:
    """A name that may be used: whose it is, and what it is called there (``PATH.py:NAME`` for files)."""

    origin: Literal["ours", "foreign", "user"]
    name: str


def allow(written: str, role: Role, trust: Trust) -> Allowed:
    """Decide whether a name may stand in a place of this role.

    Raises:
        NotAllowed: with what to do about it.
    """
    alias = aliases.find_alias(written)
    if alias is None and aliases.is_old_name(written) and not trust.allows_name(written):
        raise NotAllowed(aliases.explain_unknown(written))
    name = alias.name if alias else written
    if file_parts := split_file_target(name):
        return _allow_file(name, file_parts[0], trust)
    if name in role.ours:
        return Allowed("ours", name)
    if name in role.functions:
        return Allowed("foreign", name)
    _check_spelling(name)
    if role.matches(name):
        return Allowed("foreign", name)
    if trust.allows_name(name):
        return Allowed("user", name)
    raise NotAllowed(_why_not(name, role))


def split_file_target(name: str) -> tuple[str, str] | None:
    """``path/file.py:Object`` as (path, object), None where the name is no such form."""
    match = _FILE_TARGET.match(name)
    return (match["file"], match["name"]) if match else None


def _allow_file(name: str, path: str, trust: Trust) -> Allowed:
    if not Path(path).is_file():
        raise NotAllowed(f"there is no file {path}")
    if not trust.allows_file(path):
        raise NotAllowed(f"{path} is code that would run; if you trust it, add --trust {for_shell(path)}")
    _check_spelling(name.rpartition(":")[2])
    return Allowed("user", name)


def _check_spelling(name: str) -> None:
    for part in name.split("."):
        if not part.isidentifier() or part.startswith("_"):
            raise NotAllowed(f"{name!r} is not a name that can be used; write package.module.Name or path/file.py:Name")


def _why_not(name: str, role: Role) -> str:
    if name in aliases.NOT_HERE:
        return aliases.NOT_HERE[name]
    other = next((other for other in ROLES.values() if name in other.ours or other.matches(name)), None)
    if other is not None:
        return f"{name} is {other.kind}, expected {role.kind}"
    if name.startswith("automodel_cli."):
        return f"{name} is not {role.kind}{did_you_mean(name, role.ours)}"
    if "." not in name:
        return f"{name} is not {role.kind}{did_you_mean(name, role.ours)}; a _target_ is package.module.Name"
    refused = "may not be built here" if role.name == "nested" else f"is not {role.kind} that a file may name"
    package = name.split(".")[0]
    if package in _LIBRARIES or package in sys.stdlib_module_names:
        return f"{name} {refused}; if you mean it, add --trust {for_shell(name)}"
    return f"{name} {refused}; if it is your own code or you trust it, add --trust {for_shell(package)}"


# ------------------------------------------------------------------------------------ old argument names


def translate(target: Target, role: Role) -> tuple[dict[str, Any], list[str]]:
    """The target's arguments under their present names, and a note for each that has no effect."""
    alias = aliases.find_alias(target.name)
    dropped = {**alias.dropped, **dict.fromkeys(alias.refused, "it is empty")} if alias else {}
    if alias is None:
        dropped |= role.ignored if role.matches(target.name) else {}
    renamed = alias.renamed if alias else {}
    arguments: dict[str, Any] = dict(alias.defaults) if alias else {}
    notes = [alias.note] if alias and alias.note else []
    for key, value in target.arguments.items():
        if key in dropped:
            notes.append(f"{key} is ignored: {dropped[key]}")
        else:
            arguments[renamed.get(key, key)] = value
    return arguments, notes


def unsupported_arguments(target: Target) -> Iterator[tuple[str, str]]:
    """``(argument, what to do)`` for each argument of an old name that asks for what this version does not have."""
    alias = aliases.find_alias(target.name)
    for key, reason in alias.refused.items() if alias else ():
        if _asks_for_something(target.arguments.get(key)):
            yield key, reason


def _asks_for_something(value: Any) -> bool:
    return any(_asks_for_something(item) for item in value.values()) if isinstance(value, Mapping) else bool(value)


# ----------------------------------------------------------------------------- arguments that are code


def untrusted_code(target: Target, trust: Trust) -> Iterator[tuple[tuple[str, ...], str]]:
    """``(path, text)`` of each argument by which code would run that nobody trusted by name, or that is not plainly
    one thing or the other (`doors`); nested targets are left out."""
    for path, value, door in doors.mistyped(target.arguments):
        yield path, f"expected {door.takes}, found {describe_value(value)}"
    sources = sources_of(target)
    untrusted = [source for source in sources if not trust.allows_source(source)]
    if not (untrusted if sources else not trust.allows_name(target.name)):
        return
    name = untrusted[0] if untrusted else target.name
    for path in doors.opened(target.arguments):
        yield path, f"would run code that comes with {name}; if you trust it, add --trust {for_shell(name)}"


def sources_of(target: Target) -> list[str]:
    """The repositories and folders that a target loads from, itself and through its ``config``."""
    given = target.arguments
    config = given.get("config")
    nested = sources_of(config) if isinstance(config, Target) else []
    return [
        source for source in (given.get("pretrained_model_name_or_path"), config) if isinstance(source, str)
    ] + nested
