"""``automodel inspect-ckpt``: facts about checkpoints, on one screen or as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typer

from automodel_cli.cli import console
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.schema.results import InspectConfig
from automodel_cli.text import age, binary_size, decimal, plural

MAX_ROWS = 24


@command(
    InspectConfig,
    arguments=("path",),
    examples=("automodel inspect-ckpt runs/a", "automodel inspect-ckpt runs/a --diff LATEST BEST --json"),
)
def inspect_ckpt(cfg: InspectConfig) -> None:
    """Show what a run or checkpoint holds: steps, tensors, parameters, facts; verify it, compare two."""
    from automodel_cli.recipes import inspect_ckpt as recipe

    if cfg.as_json:
        found = recipe.run(cfg)
        show_json(found)
    else:
        with console.Progress("verifying", unit="files") as progress:
            found = recipe.run(cfg, progress=progress)
        _SHOW[found["kind"]](found)
        show_data(found.get("data_read"))
        show_verified(found.get("verify", []))
    if not all(result["ok"] for result in found.get("verify", [])):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------- views


def show_run(found: Mapping[str, Any]) -> None:
    """All steps of a run."""
    sets = sorted({name for row in found["steps"] for name in row["val_loss"]})
    columns = ["step", "loss", *(f"val {name}" if name != "default" else "val loss" for name in sets)]
    columns += ["size", "age", "state", ""]
    rows = [
        [
            f"{row['step']:,}",
            decimal(row["loss"]),
            *(decimal(row["val_loss"].get(name)) for name in sets),
            binary_size(row["bytes"]),
            age(row["age_s"]),
            "complete" if row["complete"] else row["problem"],
            " ".join(row["marks"]),
        ]
        for row in found["steps"]
    ]
    console.table(found["path"], columns, rows, right=columns[:-2])
    for note in found["notes"]:
        console.say(f"note: {note}")
    if not rows:
        console.say("there is no checkpoint in this folder yet")


def show_checkpoint(found: Mapping[str, Any]) -> None:
    """One step: facts, parameters, tensors."""
    parameters = found["parameters"]
    padding = f" + {parameters['padding']:,} of padding" if parameters["padding"] else ""
    optimizer = found["optimizer_tensors"]
    rows = [
        ("step", f"{found['step']:,} {' '.join(found['marks'])}".strip()),
        ("state", found["problem"] or "complete"),
        ("size, age", f"{binary_size(found['bytes'])}, {age(found['age_s'])}, {found['save_format']}"),
        ("loss", decimal(found["loss"])),
        *((f"val loss {name}".removesuffix(" default"), decimal(loss)) for name, loss in found["val_loss"].items()),
        ("parameters", f"{parameters['total']:,}{padding}: {by_role(parameters['by_role'])}"),
        (
            "optimizer",
            f"{brief(found['optimizer'])} ({optimizer['count']} tensors, {binary_size(optimizer['bytes'])})",
        ),
        ("average", averaged(found)),
        ("stage", brief(found["stage"])),
        ("branch", origin(found["lineage"])),
        *((key, brief(found[key])) for key in ("model", "tokenizer", "data", "precision", "batch", "versions")),
        ("tied", brief(found["tied"])),
        ("fingerprint", found["fingerprint"]),
    ]
    console.facts(found["path"], [(name, value) for name, value in rows if value])
    show_tensors(found["tensors"])
    for note in found["notes"]:
        console.say(f"note: {note}")


def show_foreign(found: Mapping[str, Any]) -> None:
    """A Hugging Face folder or a single file."""
    parameters = found["parameters"]
    rows = [
        ("size", binary_size(found["bytes"])),
        ("parameters", f"{parameters['total']:,}: {by_role(parameters['by_role'])} (roles by name)"),
        *((key, brief(found.get(key))) for key in ("model", "tokenizer", "metadata")),
        ("not read", ", ".join(found.get("not_read", []))),
    ]
    console.facts(found["path"], [(name, value) for name, value in rows if value])
    show_tensors(found["tensors"])


def show_tensors(tensors: list[Mapping[str, Any]]) -> None:
    """The tensors; where they are many, those of the same place in each layer as one line."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in tensors:
        kind = (re.sub(r"\d+", "*", row["name"]), tuple(row["shape"]), row["dtype"])
        groups.setdefault(kind if len(tensors) > MAX_ROWS else row["name"], []).append(row)
    rows = [
        [
            group[0]["name"] if len(group) == 1 else re.sub(r"\d+", "*", group[0]["name"]),
            str(len(group)),
            " x ".join(map(str, group[0]["shape"])) or "scalar",
            group[0]["dtype"],
            binary_size(sum(row["bytes"] for row in group)),
            group[0]["role"],
        ]
        for group in groups.values()
    ]
    title = f"{len(tensors)} tensors"
    if len(rows) > MAX_ROWS:
        title += f", the first {MAX_ROWS} kinds of {len(rows)} (--json shows all)"
    columns = ("tensor", "count", "shape", "type", "size", "role")
    console.table(title, columns, rows[:MAX_ROWS], right=("count", "size"))


def show_diff(found: Mapping[str, Any]) -> None:
    """What differs between two checkpoints, the largest relative change first."""
    changed = found["changed"]
    counts = {"changed": len(changed), "equal": found["equal"], "unread": found["unread"]}
    counts.update({key: len(found[key]) for key in ("added", "removed", "reshaped")})
    shown = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    console.facts("difference", [("A", found["a"]), ("B", found["b"]), ("tensors", shown or "none")])
    if changed:
        title = "largest changes" if len(changed) > MAX_ROWS else "changes"
        rows = [
            [
                row["name"],
                f"{row['max_abs']:.3g}",
                f"{row['relative']:.3g}",
                " -> ".join(row.get("dtype", ())),
            ]
            for row in changed[:MAX_ROWS]
        ]
        console.table(title, ("tensor", "max |A-B|", "|A-B|/|A|", "type"), rows, right=("max |A-B|", "|A-B|/|A|"))
    for key in ("added", "removed", "reshaped"):
        for row in found[key][:MAX_ROWS]:
            console.say(f"{key}: {row['name']} {row['shape']}")
    for title in ("config", "facts"):
        if found[title]:
            rows = [[row["key"], brief(row["a"]), brief(row["b"])] for row in found[title]]
            console.table(title, ("key", "A", "B"), rows)


def show_data(found: Mapping[str, Any] | None) -> None:
    """The outcome of ``--data``: which windows of which source were read by which samples."""
    if found is None:
        return
    rows = [
        [
            f"{row['from_sample']:,} to {row['to_sample']:,}",
            row["source"],
            f"{row['first']:,} to {row['end']:,}",
            f"{row['end'] - row['first']:,}",
            f"{row['end'] / row['available']:.3g}" if row["available"] else "",
        ]
        for row in found["windows"]
    ]
    title = f"data read until step {found['step']:,} ({found['samples']:,} samples)"
    columns = ("samples", "source", "its windows", "count", "passes so far")
    console.table(title, columns, rows, right=("its windows", "count", "passes so far"))
    for first, end in found.get("skipped", ()):
        console.say(f"of these, samples {first:,} to {end:,} were skipped")


def show_verified(results: Iterable[Mapping[str, Any]]) -> None:
    """The outcome of ``--verify``."""
    for result in results:
        hashed = f"{binary_size(result['bytes_hashed'])} hashed"
        what = f"{plural(result['files'], 'file')}, {hashed}, {plural(result['tensors_scanned'], 'tensor')}"
        sound = "ok" if result["bytes_hashed"] else "nothing to compare with"
        console.say(f"{sound if result['ok'] else 'FAILED'}: {result['path']}: {what}")
        for problem in result["problems"]:
            console.say(f"  {problem}")
        for row in result["nonfinite"]:
            console.say(f"  {row['tensor']}: {row['nan']:,} NaN, {row['inf']:,} infinite ({row['file']})")
        for name in result.get("not_covered", []):
            console.say(f"  not covered: {name}")


def show_tree(found: Mapping[str, Any]) -> None:
    """Runs and their branches, a line each."""
    rows = [row for root in found["runs"] for row in tree_rows(root)]
    columns = ("run", "from step", "to step", "val loss", "best", "change")
    console.table(found["path"], columns, rows, right=columns[1:-1])
    for note in found["notes"]:
        console.say(f"note: {note}")


def tree_rows(node: Mapping[str, Any], before: str = "", below: str = "") -> Iterator[list[str]]:
    """The lines of a run and of its branches, depth first; ``before`` and ``below`` are drawn in front of them."""
    state = "" if node["there"] else " (not there)"
    state = " (training)" if node["training"] else state
    change = "; ".join(filter(None, (node.get("change"), node.get("problem"))))
    start = f"{node['from_step']:,}" if "from_step" in node else ""
    end = "" if node["step"] is None else f"{node['step']:,}"
    yield [
        f"{before}{node['name']}{state}", start, end, decimal(node["val_loss"]), decimal(node["best_val_loss"]), change
    ]  # fmt: skip
    for number, child in enumerate(node["branches"], 1):
        last = number == len(node["branches"])
        yield from tree_rows(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


_SHOW = {
    "run": show_run,
    "checkpoint": show_checkpoint,
    "hf": show_foreign,
    "safetensors": show_foreign,
    "diff": show_diff,
    "tree": show_tree,
}


# ---------------------------------------------------------------------------------------------- values


def origin(lineage: Mapping[str, Any] | None) -> str:
    """``of ../trunk at step 400: ...``; empty for the checkpoint of a run that is no branch."""
    if lineage is None:
        return ""
    return f"of {lineage['parent']['path']} at step {lineage['parent']['step']:,}: {lineage['change']}"


def by_role(counts: Mapping[str, int]) -> str:
    """Numbers of parameters by role, largest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{role} {count:,}" for role, count in ordered)


def averaged(found: Mapping[str, Any]) -> str:
    """What a step has to do with averages: it is one of checkpoints, or holds one of its weights."""
    tensors, parts = found["ema_tensors"], found["average"]
    steps = ", ".join(f"{part['step']:,} (x {part['weight']:g})" for part in parts)
    held = f"of the weights, beside them ({tensors['count']} tensors, {binary_size(tensors['bytes'])})"
    return f"of steps {steps}" if parts else held if tensors["count"] else ""


def brief(value: Any) -> str:
    """A value on a line: nested mappings as ``key value, ...``, what is empty left out."""
    if isinstance(value, Mapping):
        parts = ((key, brief(inner)) for key, inner in value.items())
        text = ", ".join(f"{key} {inner}" for key, inner in parts if inner)
        return text if len(text) <= 400 else text[:397] + "..."
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(brief, value)) + "]" if value else ""
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
