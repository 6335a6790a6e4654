"""The tree of a run and its branches, from the ``branch.json`` of those that are there. No torch.

A trunk knows nothing of its branches: they are found by looking, in the folder around it and below. A branch whose
trunk is gone hangs from a run that is named and not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.checkpoint import layout, lineage, nested_runs
from automodel_cli.checkpoint.lineage import BranchFile
from automodel_cli.errors import AutomodelError, CheckpointError, DataError
from automodel_cli.metrics.log_file import METRICS_NAME
from automodel_cli.metrics.read import read_metrics

_DEEPEST = lineage.MOST_ANCESTORS


@dataclass
class _Runs:
    """The runs that are there, by their real folders, and what those that are branches say of it."""

    branches: dict[Path, BranchFile | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, run: Path) -> BranchFile | None:
        run = run.resolve()
        if run not in self.branches:
            try:
                self.branches[run] = lineage.read(run)
            except CheckpointError as error:
                self.branches[run] = None
                self.notes.append(error.message)
        return self.branches[run]

    def parents(self) -> dict[Path, tuple[Path, int]]:
        """What each run is a branch of, and at which step; those of gone runs as their branches tell it."""
        found: dict[Path, tuple[Path, int]] = {}
        for run, branch in self.branches.items():
            forks = [] if branch is None else [branch.parent, *branch.ancestors]
            child = run
            for fork in forks:
                parent = Path(os.path.realpath(run / fork.path))
                if child not in self.branches or child == run:
                    found[child] = (parent, fork.step)
                if parent in self.branches:
                    break
                child = parent
        return found


def describe_family(path: Path) -> dict[str, Any]:
    """The tree that the run ``path`` belongs to; all trees of runs below ``path``, where that is no run.

    ``runs`` are the roots; each run has ``name``, ``path``, ``there``, ``step`` (the last one), ``val_loss``,
    ``best_val_loss``, ``training``, of a branch ``from_step`` and ``change``, and ``branches``.

    Raises:
        CheckpointError: no run is there, or none is a branch.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}", "name a run, or a folder with runs in it")
    is_run = nested_runs.is_run(path)
    runs = _Runs()
    top = _oldest(path, runs) if is_run else path
    base = top.resolve().parent if is_run else path.resolve()
    for run in nested_runs.runs_below(base):
        runs.add(run)
    parents = runs.parents()
    children: dict[Path, list[Path]] = {}
    for child, (parent, _) in sorted(parents.items(), key=lambda item: (item[1][1], item[0])):
        children.setdefault(parent, []).append(child)
    roots = sorted(parent for parent in children if parent not in parents)
    if is_run:
        own = path.resolve()
        roots = [root for root in roots if own in _below(root, children)]
    if not roots:
        raise CheckpointError(
            f"no branch of {path} lies in {base} or below" if is_run else f"no run below {path} is a branch of another",
            "name the branch, or a folder that holds both; automodel branch RUN@STEP --into DIR makes one",
        )
    nodes = [_node(root, base, runs, parents, children) for root in roots]
    return {"kind": "tree", "path": str(path), "runs": nodes, "notes": runs.notes}


def _oldest(run: Path, runs: _Runs) -> Path:
    """The first of the runs that ``run`` comes from which are still there."""
    for _ in range(_DEEPEST):
        branch = runs.add(run)
        above = None if branch is None else lineage.parent_folder(run, branch.parent)
        if above is None or not nested_runs.is_run(above):
            break
        run = above.resolve()
    return run


def _below(root: Path, children: dict[Path, list[Path]]) -> Iterator[Path]:
    waiting = [root]
    while waiting:
        run = waiting.pop()
        yield run
        waiting += children.get(run, [])


def _node(
    run: Path,
    base: Path,
    runs: _Runs,
    parents: dict[Path, tuple[Path, int]],
    children: dict[Path, list[Path]],
    depth: int = 0,
) -> dict[str, Any]:
    branch = runs.branches.get(run)
    there = run in runs.branches
    node: dict[str, Any] = {"name": os.path.relpath(run, base), "path": str(run), "there": there}
    node |= _state(run) if there else dict.fromkeys(("step", "val_loss", "best_val_loss"), None)
    node["training"] = there and nested_runs.is_training(run)
    if run in parents:
        node["from_step"] = parents[run][1]
    if branch is not None:
        node |= {"change": branch.change, "changed": list(branch.changed), "problem": _replaced(run, branch)}
    below = children.get(run, []) if depth < _DEEPEST else []
    return {**node, "branches": [_node(child, base, runs, parents, children, depth + 1) for child in below]}


def _state(run: Path) -> dict[str, Any]:
    """How far a run has come, and its losses: from its log, which may be short of the last steps or not there."""
    steps = layout.list_steps(run)
    found: dict[str, Any] = {"step": steps[-1] if steps else None, "val_loss": None, "best_val_loss": None}
    try:
        metrics = read_metrics(run) if (run / METRICS_NAME).exists() else None
    except DataError:
        return found
    if metrics is None:
        return found
    if "step" in metrics.train:
        found["step"] = max(found["step"] or 0, int(metrics.train["step"][-1]))
    sets = metrics.validation
    losses = sets.get("default", next(iter(sets.values()), {})).get("loss", np.empty(0))
    finite = losses[np.isfinite(losses)]
    if finite.size:
        found |= {"val_loss": float(finite[-1]), "best_val_loss": float(finite.min())}
    return found


def _replaced(run: Path, branch: BranchFile) -> str | None:
    """What is wrong where the checkpoint that a branch comes from is another one now."""
    step = layout.step_folder(lineage.parent_folder(run, branch.parent), branch.parent.step)
    try:
        same = not layout.is_complete(step) or layout.read_step_manifest(step)["self"] == branch.parent.checkpoint
    except AutomodelError as error:
        return error.message
    return None if same else f"{step} is no longer the checkpoint that it comes from"
