"""``automodel inspect-ckpt``: facts about a run, a checkpoint or anybody's safetensors, checked and compared.

Works without torch: nothing here, and nothing that it calls, imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from automodel_cli import json_files
from automodel_cli.checkpoint import layout, run_files
from automodel_cli.checkpoint.inspect import compare, describe, family, verify
from automodel_cli.config.schema.results import InspectConfig
from automodel_cli.data.mixture.history import windows_read
from automodel_cli.data.position import checked_position
from automodel_cli.errors import CheckpointError
from automodel_cli.metrics.run_view import RunView


def run(cfg: InspectConfig, *, progress: verify.Progress | None = None) -> dict[str, Any]:
    """What was asked for, as plain JSON.

    ``kind`` is ``run``, ``checkpoint``, ``hf``, ``safetensors``, ``diff`` or ``tree``. As JSON a run has a key ``log``
    too: the last numbers of its ``metrics.jsonl``, and events, as ``watch`` shows them. With ``verify`` the key of that
    name holds one result for each checkpoint or file that was read.

    Raises:
        CheckpointError: there is no such thing, or its manifest or a header is damaged.
    """
    try:
        return _look(cfg, progress)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or cfg.path} cannot be read: {error.strerror}",
            "it may have been removed meanwhile (a run deletes its old checkpoints): look again",
        ) from error


def _look(cfg: InspectConfig, progress: verify.Progress | None) -> dict[str, Any]:
    path = layout.followed(cfg.path)
    if cfg.tree:
        return family.describe_family(path if layout.step_of(path.name) is None else path.parent)
    if cfg.diff is not None:
        a, b = (find(path, which) for which in cfg.diff)
        return {"kind": "diff", **compare.diff(a, b)}
    if cfg.step is not None:
        path = layout.resolve(path, cfg.step)
    found = describe.describe(path)
    if cfg.as_json and found["kind"] == "run":  # a table has no place for it, and a long log takes seconds
        log = RunView(path).read_all()
        found["log"] = {**log.summary(), "events": log.events()}
    if cfg.data:
        step = layout.checkpoint_at(path)
        if step is None:
            raise CheckpointError(f"{path} is no checkpoint of a run", "--data shows what a run has read")
        found["data_read"] = data_read(step)
    if cfg.verify:
        is_run = found["kind"] == "run"
        complete = [path / row["name"] for row in found["steps"]] if is_run else [path]
        found["verify"] = [verify.verify(folder, progress=progress) for folder in complete]
        found["verify"] += [run_files.verify_run(path)] if is_run else []
    return found


def data_read(step: Path) -> dict[str, Any]:
    """What the run had read of its training data when it wrote a checkpoint.

    Raises:
        DataError: the stored position is damaged.
    """
    position = checked_position(json_files.read_json(step / "loader.json", CheckpointError))
    rows = [vars(row) for row in windows_read(position.plan, position.samples_consumed)]
    skipped = {"skipped": [list(one) for one in position.skipped]} if position.skipped else {}
    return {"step": layout.step_of(step.name), "samples": position.samples_consumed, "windows": rows, **skipped}


def find(run_folder: Path, which: str) -> Path:
    """One side of a comparison: a step of the run folder by name, number or pointer, or any path.

    Raises:
        CheckpointError: there is none.
    """
    path = layout.followed(which)
    if which in layout.POINTERS or which.isdigit() or layout.is_complete(run_folder / which):
        return layout.resolve(run_folder, which)
    return layout.resolve(path) if describe.kind_of(path) == "run" else path
