"""Overrides on the command line: ``--a.b.c value``, ``--a.b.c=value``, ``a.b.c=value``.

A bare ``--a.b.c`` is true; a list is reached by index (``--dataset.paths.0 x``, one past the end appends); the value
is read by the same rules as the file. Every token is used or reported: none is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from automodel_cli.config.problems import Problem
from automodel_cli.config.targets.target import LocatedDict, LocatedList, Written
from automodel_cli.config.yaml_tree import KeyPath, has, parse_value

COMMAND_LINE = "command line"
_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w*-]+)*\Z")
_MAX_PARTS = 50


@dataclass(frozen=True)
class Override:
    """One value to set: the dotted path as written, the value, and how that was written."""

    path: str
    value: Any
    written: Written


def parse_overrides(tokens: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Read all tokens in order; what is no override is a problem."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == "--":
            continue
        name, equals, text = token.removeprefix("--").partition("=")
        is_path = _PATH.match(name) and name.count(".") <= _MAX_PARTS
        if not is_path or not (equals or token.startswith("--")):
            what, form = ("unknown option", "--section.key value")
            if not token.startswith("-"):
                what, form, token = ("unexpected argument", "section.key=value", repr(token))
            problems.append(Problem(COMMAND_LINE, "", f"{what} {token}; a config key is given as {form}"))
            continue
        if not equals and position < len(tokens) and not tokens[position].startswith("--"):
            text = tokens[position]
            position += 1
        elif not equals:
            text = "true"
        value, written, found = parse_value(text, COMMAND_LINE)
        overrides.append(Override(name, value, written))
        problems += [Problem(problem.where, name, problem.text) for problem in found]
    return overrides, problems


def apply_override(root: LocatedDict, override: Override) -> Problem | None:
    """Set one value, making missing sections; a problem where the path leads through a value."""
    node: Any = root
    parts = tuple(override.path.split("."))
    for depth, part in enumerate(parts[:-1]):
        key = _key(node, part)
        if not has(node, key) or node[key] is None:
            section = LocatedDict(where=COMMAND_LINE)
            if problem := _set(node, key, section, Written(COMMAND_LINE), parts[: depth + 1]):
                return problem
        node = node[key]
        if not isinstance(node, (LocatedDict, LocatedList)):
            text = f"{'.'.join(parts[: depth + 1])} is a single value and has no key {parts[depth + 1]}"
            return Problem(COMMAND_LINE, override.path, text)
    return _set(node, _key(node, parts[-1]), override.value, override.written, parts)


def _key(node: Any, part: str) -> str | int:
    return int(part) if isinstance(node, list) and part.isdigit() else part


def _set(node: Any, key: str | int, value: Any, written: Written, path: KeyPath) -> Problem | None:
    size = len(node)
    if isinstance(node, list) and (not isinstance(key, int) or key > size):
        text = f"expected an index from 0 to {size - 1} ({size} appends), found {key}"
        return Problem(COMMAND_LINE, ".".join(map(str, path)), text)
    node.put(key, value, written)
    return None
