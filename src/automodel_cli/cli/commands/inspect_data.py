"""``automodel inspect-data``: the text of a step, row by row, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from automodel_cli.cli import console
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.schema.results import InspectDataConfig
from automodel_cli.text import plural

_MOST_DOCUMENTS = 8  # of a piece, on the screen


@command(
    InspectDataConfig,
    arguments=("run",),
    examples=(
        "automodel inspect-data runs/a --step 1200",
        "automodel inspect-data runs/a --samples 9600:9608 --full",
    ),
)
def inspect_data(cfg: InspectDataConfig) -> None:
    """Show the text that a run is trained on at a step: rows, sources, files, positions, documents."""
    from automodel_cli.recipes import inspect_data as recipe

    found = recipe.run(cfg)
    if cfg.as_json:
        show_json(found)
        return
    console.say(headline(found))
    for row in found["rows"]:
        console.say()
        for line in row_lines(row):
            console.say(line)
    if (more := found["samples"] - len(found["rows"])) > 0:
        console.say(f"\n{plural(more, 'more row')}: --rows N or --full shows them")


def headline(found: Mapping[str, Any]) -> str:
    """What is shown."""
    range_ = f"samples {found['first_sample']:,} to {found['end_sample']:,}"
    if found["step"] is None:
        return f"{found['run']}: {range_}"
    state = "" if found["trained"] else ", not trained yet"
    return f"{found['run']}, step {found['step']:,}{state}: {plural(found['samples'], 'row')}, {range_}"


def row_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """A row: where it is from, and its text; what is control characters in it the console spells out."""
    yield f"row {row['row']}, sample {row['sample']:,}"
    for piece in row["pieces"]:
        yield f"  {place(piece)}"
    if "ids" in row:
        yield f"  ids {' '.join(map(str, row['ids']))} (no tokenizer is known)"
        return
    for line in row["text"].split("\n"):
        yield f"  | {line}"
    if len(row["text"]) < row["characters"]:
        yield f"  | ... ({len(row['text']):,} of {row['characters']:,} characters)"


def place(piece: Mapping[str, Any]) -> str:
    """A piece of a file in words."""
    source = f"{piece['source']}: " if "source" in piece else ""
    tokens = f"tokens {piece['first_token']:,} to {piece['end_token']:,}"
    return f"{source}{piece['file']}, {tokens}{documents(piece['documents'])}"


def documents(found: list[Mapping[str, Any]]) -> str:
    """Documents by number where that is known, and where they begin."""
    if not found:
        return ""
    first = found[:_MOST_DOCUMENTS]
    words = [
        ("" if one["number"] is None else f"{one['number']:,} ")
        + ("(begins earlier)" if one["start"] is None else f"(from token {one['start']:,})")
        for one in first
    ]
    more = f" and {len(found) - len(first):,} more" if len(found) > len(first) else ""
    return f", {'documents' if len(found) > 1 else 'document'} {', '.join(words)}{more}"
