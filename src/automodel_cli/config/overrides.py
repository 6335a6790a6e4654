"""Overrides on the command line: ``--a.b.c value``, ``--a.b.c=value``, ``a.b.c=value``.

A bare ``--a.b.c`` is true; a list is reached by index (``--dataset.paths.0 x``, one past the end appends); the value
is read by the same rules as the file. Every token is used or reported: none is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from automodel_cli.config.problems import Problem
from automodel_cli.config.yaml_tree import (
    KeyPath,
    ListNode,
    MapNode,
    Node,
    Scalar,
    parse_value,
)

COMMAND_LINE = "command line"
_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w*-]+)*\Z")
_MAX_PARTS = 50


@dataclass(frozen=True)
class Override:
    """One value to set: the dotted path as written, and the value's tree."""

    path: str
    value: Node

    @property
    def parts(self) -> tuple[str, ...]:
        """The path's components."""
        return tuple(self.path.split("."))


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
            problems.append(_not_an_override(token))
            continue
        if not equals and position < len(tokens) and not tokens[position].startswith("--"):
            text = tokens[position]
            position += 1
        elif not equals:
            text = "true"
        value, found = parse_value(text, COMMAND_LINE)
        overrides.append(Override(name, value))
        problems += [Problem(problem.where, name, problem.text) for problem in found]
    return overrides, problems


def _not_an_override(token: str) -> Problem:
    if token.startswith("-"):
        text = f"unknown option {token}; a config key is given as --section.key value"
    else:
        text = f"unexpected argument {token!r}; a config key is given as section.key=value"
    return Problem(COMMAND_LINE, "", text)


def apply_override(root: MapNode, override: Override) -> Problem | None:
    """Set one value in the tree, making missing sections; a problem where the path leads through a value."""
    node: Node = root
    parts = override.parts
    for depth, part in enumerate(parts[:-1]):
        child = _child(node, part)
        if child is None or (isinstance(child, Scalar) and child.value is None):
            child = MapNode(where=COMMAND_LINE)
            if problem := _set(node, part, child, parts[: depth + 1]):
                return problem
        if isinstance(child, Scalar):
            text = f"{'.'.join(parts[: depth + 1])} is a single value and has no key {parts[depth + 1]}"
            return Problem(COMMAND_LINE, override.path, text)
        node = child
    return _set(node, parts[-1], override.value, parts)


def _child(node: Node, part: str) -> Node | None:
    if isinstance(node, MapNode):
        return node.items.get(part)
    if isinstance(node, ListNode) and part.isdigit() and int(part) < len(node.items):
        return node.items[int(part)]
    return None


def _set(node: Node, part: str, value: Node, path: KeyPath) -> Problem | None:
    if isinstance(node, MapNode):
        node.items[part] = value
        node.key_where[part] = COMMAND_LINE
        return None
    assert isinstance(node, ListNode)
    size = len(node.items)
    if not part.isdigit() or int(part) > size:
        text = f"expected an index from 0 to {size - 1} ({size} appends), found {part}"
        return Problem(COMMAND_LINE, ".".join(map(str, path)), text)
    node.items[int(part) : int(part) + 1] = [value]
    return None
