"""Which objects a URL stands for: an object, all below a folder, or a pattern with the rules of ``globbing``.

There are no folders in a bucket, only names with slashes; a folder is what the names of several objects begin with.
Everything below the part of a URL that holds no pattern is listed once, in one request for a thousand objects.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectInfo
from automodel_cli.storage.urls import Address, relative_to, split_url

_SKIPPED = "__pycache__"


@dataclass(frozen=True)
class Objects:
    """What a URL stands for.

    Attributes:
        kind: how it was meant.
        base: URL of the folder that names are relative to.
        found: name and object, sorted by name; hidden ones only where a pattern names them.
        there: names of all objects below ``base``, chosen or not.
    """

    kind: Literal["object", "folder", "pattern"]
    base: str
    found: list[tuple[str, ObjectInfo]]
    there: frozenset[str]


def find_objects(url: str) -> Objects:
    """The objects of ``url``; none is no error.

    Raises:
        AutomodelError: the storage cannot be listed.
    """
    address = split_url(url)
    url = str(address)
    plain = _without_patterns(address.key.split("/"))
    base = str(Address(address.scheme, address.place, "/".join(plain)))
    store = open_store(base)
    if (only := store.info(url) if address.key else None) is not None:  # what exists is meant literally
        return Objects("object", url.rsplit("/", 1)[0], [(url.rsplit("/", 1)[1], only)], frozenset())
    below = {relative_to(info.url, base): info for info in store.list_all(base)}
    if literal := _below(below, address.key[len("/".join(plain)) :].strip("/")):
        base = str(address)
        shown = [(name, info) for name, info in literal.items() if not _is_hidden(name)]
        return Objects("folder", base, sorted(shown, key=_by_name), frozenset(literal))
    rest = tuple(address.key.split("/")[len(plain) :])
    if not rest or rest == ("",):
        return Objects("folder", base, [], frozenset())
    names = set(_matches(_tree(below), (), rest))
    found = sorted(((name, below[name]) for name in names if name in below), key=_by_name)
    return Objects("pattern", base, found, frozenset(below))


def _without_patterns(parts: Sequence[str]) -> list[str]:
    """The folders before the first part that may be a pattern; the last part is no folder."""
    first = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return [part for part in parts[:first] if part] if first == len(parts) else list(parts[:first])


def _below(names: dict[str, ObjectInfo], folder: str) -> dict[str, ObjectInfo]:
    """What lies in ``folder`` by its name as it stands, relative to it; objects of size 0 that mark it are nothing."""
    prefix = f"{folder}/" if folder else ""
    return {name[len(prefix) :]: info for name, info in names.items() if name.startswith(prefix) and name != prefix}


def _by_name(pair: tuple[str, ObjectInfo]) -> str:
    return pair[0]


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or _SKIPPED in parts[:-1]


def _tree(names: dict[str, ObjectInfo]) -> dict[tuple[str, ...], set[str]]:
    """What each folder holds."""
    tree: dict[tuple[str, ...], set[str]] = {(): set()}
    for name in names:
        parts = tuple(name.split("/"))
        for depth, part in enumerate(parts):
            tree.setdefault(parts[:depth], set()).add(part)
    return tree


def _matches(tree: dict[tuple[str, ...], set[str]], folder: tuple[str, ...], parts: tuple[str, ...]) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    inside = tree.get(folder, set())
    if part == "**":
        for below in _folders(tree, folder):
            if rest:
                yield from _matches(tree, below, rest)
            else:
                yield from ("/".join((*below, name)) for name in tree[below] if not name.startswith("."))
        return
    chosen = {part} if part in inside else {name for name in inside if _fits(name, part)}
    for name in chosen:
        if rest:
            yield from _matches(tree, (*folder, name), rest)
        else:
            yield "/".join((*folder, name))


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def _folders(tree: dict[tuple[str, ...], set[str]], start: tuple[str, ...]) -> list[tuple[str, ...]]:
    """``start`` and all folders below it that are not hidden."""
    depth = len(start)
    return [
        folder
        for folder in tree
        if folder[:depth] == start and not any(part.startswith(".") for part in folder[depth:])
    ]
