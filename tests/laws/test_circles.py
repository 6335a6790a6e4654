"""Law five: no import circles between modules, wherever the import stands.

import-linter keeps the rooms apart; inside a room it sees nothing. Imports within functions and under TYPE_CHECKING
count as well: they hide a circle, they do not end it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "automodel_cli"


def modules(source: Path) -> dict[str, Path]:
    """Dotted name of every module below the package folder ``source``, and its file."""
    files = {path: path.relative_to(source.parent).with_suffix("").parts for path in source.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in files.items()}


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ``known`` that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield str(node.module)


def circles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of more than one node (Tarjan 1972), and nodes that reach themselves."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            start = stack.index(node)
            component = frozenset(stack[start:])
            del stack[start:]
            if len(component) > 1 or node in graph[node]:
                found.add(component)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def import_graph(source: Path) -> dict[str, set[str]]:
    """Which modules each module of a package imports."""
    known = modules(source)
    return {name: set(imports(path, known)) for name, path in known.items()}


def test_there_are_no_import_circles():
    assert circles(import_graph(SOURCE)) == set()


@pytest.mark.parametrize(
    "hidden",
    [
        "import p.a\n",
        "from p import a\n",
        "def f():\n    from p.a import x\n",
        "if TYPE_CHECKING:\n    from p import a\n",
    ],
)
def test_a_hidden_circle_is_found(hidden, tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from p import b\nx = 1\n")
    (package / "b.py").write_text(hidden)
    (package / "c.py").write_text("from p.a import x\n")
    assert circles(import_graph(package)) == {frozenset({"p.a", "p.b"})}
