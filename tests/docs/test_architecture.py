"""docs/architecture.md and its picture against the tree: the rooms, layers and arrows drawn are the real ones."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PICTURE = ROOT / "docs/images/architecture.svg"
ONCE_MORE = "run `make docs`"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The script that draws."""
    spec = importlib.util.spec_from_file_location("architecture_svg", ROOT / "docs/architecture_svg.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # for its dataclass
        spec.loader.exec_module(module)
    return module


def drawn(kind: str, *keys: str) -> set[tuple[str, ...]]:
    """The ``data-`` attributes of all elements of a class in the committed picture."""
    tree = ElementTree.parse(PICTURE)
    return {tuple(found.get(f"data-{key}") for key in keys) for found in tree.iter() if found.get("class") == kind}


def test_rooms_and_layers_are_the_real_ones(drawing):
    rows, foundation = drawing.stacked()
    rooms = {(name, str(number)) for number, row in enumerate(rows) for name in row}
    assert drawn("room", "room", "layer") == rooms, ONCE_MORE
    assert drawn("foundation", "modules") == {(" ".join(foundation),)}, ONCE_MORE


def test_every_arrow_is_an_import_and_every_import_follows_the_arrows(drawing):
    graph = drawing.room_imports()
    arrows = drawn("import", "from", "to")
    assert {(a, b) for a, b in arrows if b not in graph[a]} == set(), ONCE_MORE

    def reached(room: str) -> set[str]:
        return {further for a, b in arrows if a == room for further in ({b} | reached(b))}

    assert {(a, b) for a in graph for b in graph[a] - reached(a)} == set(), ONCE_MORE


def test_arrows_that_follow_from_others_are_left_out(drawing):
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert drawing.arrows(graph) == [("a", "b"), ("b", "c")]


def test_the_picture_says_what_stands_in_each_room(drawing):
    """Boxes are wide enough for their words, and no two of a row overlap."""
    rows, _ = drawing.stacked()
    for row in rows:
        ends = sorted(drawing.ROOMS[name][:2] for name in row)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends)), row


def test_every_module_the_page_names_is_there():
    """Files and folders in backticks, by their place in the package or the repository."""
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        if "NAME" in name:
            continue
        known = [ROOT / "src/automodel_cli" / name, ROOT / name, ROOT / "tests" / name]
        assert any(path.exists() for path in known), name


def test_contracts_that_the_code_cites_are_on_the_page():
    numbers = set(re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE))
    for path in (ROOT / "src").rglob("*.py"):
        cited = re.findall(r"[Cc]ontract (\d+)", path.read_text(encoding="utf-8"))
        assert set(cited) <= numbers, path
