"""Patterns and folders on a disk: what exists by a name is meant literally, links are followed, no folder comes twice.

A part of a pattern that names an existing file or folder as it stands (``data [v1]``, ``x*[0].txt``) is that one; only
other parts are patterns, with the rules of ``glob.glob``: ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth;
hidden names only where the pattern begins with a dot.

Behind a symbolic link to a folder lies data like any other. A tree may hold links to itself or two ways to one folder:
each folder is entered once, by its own name where it has one below the start, else by the first link to it.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from automodel_cli.errors import DataError


def is_pattern(text: str) -> bool:
    """Whether ``text`` has to be expanded: it holds pattern characters and nothing exists by that name."""
    return glob.has_magic(text) and not os.path.lexists(text)


def expand(pattern: str) -> list[Path]:
    """All that ``pattern`` names (broken links too), sorted; as it stands if it exists.

    Raises:
        DataError: a folder cannot be read.
    """
    path = Path(pattern)
    found = _matches(Path(path.anchor), path.relative_to(path.anchor).parts)
    return sorted(dict.fromkeys(found))


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    literal = folder / part
    if part == "**":
        for inside in walk(folder).folders:
            shown = [path for path in _entries(inside) if not path.name.startswith(".")]
            yield from _matches(inside, rest) if rest else shown
    elif os.path.lexists(literal) or not glob.has_magic(part):
        if os.path.lexists(literal) and (not rest or literal.is_dir()):
            yield from _matches(literal, rest)
    else:
        for path in _entries(folder):
            hidden = path.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(path.name, part) and (not rest or path.is_dir()):
                yield from _matches(path, rest)


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where there is no folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}", "check its permissions") from error


@dataclass
class Tree:
    """Folders that can be reached from one, itself included, and links to folders that are there already."""

    folders: list[Path] = field(default_factory=list)
    links_to_known: list[Path] = field(default_factory=list)


def walk(start: Path, *, skip: tuple[str, ...] = ()) -> Tree:
    """All folders below ``start``, also behind links, each once; not the hidden ones and those named ``skip``.

    Raises:
        DataError: a folder cannot be read.
    """
    tree, known = Tree(), set[tuple[int, int]]()
    waiting = [start]  # links wait until all that lies below the start under its own name was seen
    while waiting:
        stack = [waiting.pop(0)]
        if _identity(stack[0]) in known:
            tree.links_to_known.append(stack[0])
            continue
        while stack:
            folder = stack.pop()
            known.add(_identity(folder))
            tree.folders.append(folder)
            shown = [p for p in _entries(folder) if not p.name.startswith(".") and p.name not in skip]
            below = [path for path in shown if path.is_dir()]
            waiting += [path for path in below if path.is_symlink()]
            own = [path for path in below if not path.is_symlink() and _identity(path) not in known]
            stack += reversed(own)
    return tree


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
