"""The picture of the rooms, made from the import laws and the real imports: ``docs/images/architecture.svg``.

    python docs/architecture_svg.py > docs/images/architecture.svg

Rows are the layers of the first law in ``pyproject.toml``, boxes are the folders that are there, and small print is
their sub-rooms. An arrow is an import; one that follows from others (a -> b -> c makes a -> c) is left out. Modules
that stand alone, from ``batch`` down, are the foundation that every room may use. Standard library only.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "automodel_cli"

# Room -> where its box begins and ends, in twelfths of the width, and what it is for.
ROOMS = {
    "cli": (0.0, 12.0, "argv in, exit code out"),
    "recipes": (0.0, 12.0, "one file per command: what happens, in order"),
    "assembly": (0.0, 10.4, "builds what a configuration describes"),
    "serving": (0.0, 4.0, "models behind an address"),
    "evaluation": (4.4, 8.2, "scores"),
    "scaling": (0.0, 4.0, "runs to laws"),
    "generation": (6.2, 8.2, "sampling"),
    "data": (2.0, 4.2, "token files to batches, with a position that can be saved"),
    "train": (5.2, 7.1, "one training step"),
    "checkpoint": (7.9, 10.4, "run folders and checkpoints"),
    "distributed": (5.1, 6.7, "ranks, meshes, sharding"),
    "models": (6.8, 8.4, "layers and initial values"),
    "metrics": (8.9, 10.4, "console line, metrics.jsonl, W&B, plots"),
    "launch": (10.6, 12.0, "starts and watches processes"),
    "config": (0.0, 1.8, "YAML to typed values"),
    "corpus": (2.0, 10.4, "raw text in, token files out"),
    "storage": (2.0, 10.4, "objects in buckets, by URL"),
}  # fmt: skip
NO_TORCH = {"cli", "config", "corpus", "scaling", "storage"}  # the third law

UNIT, LEFT, TOP, GAP, LINE = 84, 16, 16, 44, 15
Interval = tuple[float, float]


# ------------------------------------------------------------------------------------------ what there is


def layers() -> list[list[str]]:
    """The first law, from the top: the rooms and modules of each layer that exist."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rows = [[name.strip(" ()") for name in row.split("|")] for row in tool["contracts"][0]["layers"]]
    there = [[name for name in row if is_room(name) or (PACKAGE / f"{name}.py").is_file()] for row in rows]
    return [row for row in there if row]


def is_room(name: str) -> bool:
    """Whether it is a folder with modules in it."""
    return (PACKAGE / name / "__init__.py").is_file()


def stacked() -> tuple[list[list[str]], list[str]]:
    """The layers of rooms, and the foundation: all from the first layer with a module that stands alone."""
    rows = layers()
    first = next(k for k, row in enumerate(rows) if not all(map(is_room, row)))
    return rows[:first], [name for row in rows[first:] for name in row]


def room_imports() -> dict[str, set[str]]:
    """Which rooms each room imports, anywhere in its files."""
    found = {}
    for room in filter(is_room, (name for row in stacked()[0] for name in row)):
        names = {name for path in (PACKAGE / room).rglob("*.py") for name in _imported(path)}
        found[room] = {name.split(".")[1] for name in names} - {room}
    return {room: {other for other in others if other in found} for room, others in found.items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith(f"{PACKAGE.name}."))


def arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: the transitive reduction of a graph without circles."""

    def below(room: str) -> set[str]:
        return {further for other in graph[room] for further in ({other} | below(other))}

    return [
        (room, other)
        for room, others in graph.items()
        for other in sorted(others)
        if not any(other in below(between) for between in others - {other})
    ]


# ---------------------------------------------------------------------------------------------- the drawing


@dataclass(frozen=True)
class Box:
    """A room's place on the page."""

    name: str
    row: int
    x: float
    y: float
    width: float
    height: float

    @property
    def span(self) -> Interval:
        """Its left and right edge, without the round corners."""
        return self.x + 10, self.x + self.width - 10


def render() -> str:
    """The whole file."""
    rows, foundation = stacked()
    boxes: dict[str, Box] = {}
    y = float(TOP)
    for number, row in enumerate(rows):
        height = max(_height(name) for name in row)
        for name in row:
            begin, end, _ = ROOMS[name]
            boxes[name] = Box(name, number, LEFT + begin * UNIT, y, (end - begin) * UNIT, height)
        y += height + GAP
    bottom = y - GAP + 22
    width, height = LEFT * 2 + 12 * UNIT, bottom + 76 + TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>The rooms of automodel and their imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5b6770"/></marker></defs>',
        f'<rect width="{width}" height="{height:g}" fill="#ffffff"/>',
        *(_arrow(boxes[a], boxes[b], boxes.values()) for a, b in arrows(room_imports())),
        *map(_box, boxes.values()),
        _border(boxes["assembly"], width),
        _foundation(foundation, bottom, width),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _height(name: str) -> float:
    return 30 + LINE * len(_lines(name)) + 6


def _lines(name: str) -> list[tuple[str, bool]]:
    """What stands in a box below its name, and whether it is small print."""
    begin, end, about = ROOMS[name]
    letters = max(12, int((end - begin) * UNIT / 6.4) - 3)
    inner = sorted(path.parent.name for path in (PACKAGE / name).glob("*/__init__.py"))
    text = [(line, False) for line in textwrap.wrap(about, letters)]
    return text + [
        (line.replace("~", " "), True) for line in textwrap.wrap(" ".join(_dotted(inner)), letters)
    ]


def _dotted(words: list[str]) -> list[str]:
    return [f"{word}~·" for word in words[:-1]] + words[-1:]


def _box(box: Box) -> str:
    fill, edge = ("#e8f4ea", "#5d9b68") if box.name in NO_TORCH else ("#e9eff8", "#6688b5")
    middle = box.x + box.width / 2
    lines = [
        f'<text x="{middle:g}" y="{box.y + 38 + LINE * k:g}" font-size="{11 if small else 12}" '
        f'fill="{"#5b6770" if small else "#26323a"}" text-anchor="middle">{escape(text)}</text>'
        for k, (text, small) in enumerate(_lines(box.name))
    ]
    return "\n".join(
        [
            f'<g class="room" data-room="{box.name}" data-layer="{box.row}">',
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="7" '
            f'fill="{fill}" stroke="{edge}"/>',
            f'<text x="{middle:g}" y="{box.y + 20:g}" font-size="15" font-weight="bold" fill="#26323a" '
            f'text-anchor="middle">{box.name}</text>',
            *lines,
            "</g>",
        ]
    )


def _arrow(a: Box, b: Box, boxes: Iterable[Box]) -> str:
    """Straight down where nothing is in the way, else a curve."""
    between = [box for box in boxes if a.row < box.row < b.row]
    lane = _free((max(a.span[0], b.span[0]), min(a.span[1], b.span[1])), between)
    top, end = a.y + a.height, b.y - 2
    if lane is not None:
        x = sum(lane) / 2
        path = f"M{x:g},{top:g} L{x:g},{end:g}"
    else:
        start, stop = (_nearest(box, other) for box, other in ((a, b), (b, a)))
        path = (
            f"M{start:g},{top:g} C{start:g},{top + GAP * 0.6:g} {stop:g},{end - GAP * 0.6:g} {stop:g},{end:g}"
        )
    return (
        f'<path class="import" data-from="{a.name}" data-to="{b.name}" d="{path}" fill="none" stroke="#5b6770" '
        'stroke-width="1.4" marker-end="url(#tip)"/>'
    )


def _free(lane: Interval, between: Iterable[Box]) -> Interval | None:
    """The widest part of a lane with no box in it."""
    free = [lane]
    for box in between:
        left, right = box.x - 8, box.x + box.width + 8
        free = [piece for low, high in free for piece in ((low, min(high, left)), (max(low, right), high))]
        free = [piece for piece in dict.fromkeys(free) if piece[0] < piece[1]]
    return max(free, key=lambda piece: piece[1] - piece[0]) if free and free[0][0] < free[0][1] else None


def _nearest(box: Box, other: Box) -> float:
    """The point on a box's edge that is nearest to another one, a little away from the corner."""
    low, high = box.x + 14, box.x + box.width - 14
    return min(max(other.x + other.width / 2, low), high)


def _border(assembly: Box, width: float) -> str:
    """The second law: a dashed line below the last room that knows a configuration."""
    y = assembly.y + assembly.height + 14
    return (
        f'<path d="M{LEFT},{y:g} L{width - LEFT},{y:g}" stroke="#b0563b" stroke-dasharray="6 5"/>'
        f'<text x="{LEFT + 276}" y="{y + 15:g}" font-size="11" fill="#b0563b">no configuration below this line</text>'
    )


def _foundation(names: list[str], y: float, width: float) -> str:
    text = " · ".join(names)
    return "\n".join(
        [
            f'<g class="foundation" data-modules="{" ".join(names)}">',
            f'<rect x="{LEFT}" y="{y:g}" width="{width - 2 * LEFT}" height="50" rx="7" '
            'fill="#f4f1ea" stroke="#b1a58a"/>',
            f'<text x="{width / 2:g}" y="{y + 20:g}" font-size="13" fill="#26323a" text-anchor="middle">'
            f"{escape(text)}</text>",
            f'<text x="{width / 2:g}" y="{y + 38:g}" font-size="11" fill="#5b6770" text-anchor="middle">'
            "the foundation, which any room may import</text>",
            f'<text x="{LEFT}" y="{y + 70:g}" font-size="11" fill="#5b6770">'
            "Green: imports no torch. Arrows are imports; those implied by others are left out.</text>",
            "</g>",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(render())
