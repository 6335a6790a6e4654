"""Where a branch comes from: ``branch.json`` of its run folder, carried in the facts of its checkpoints too. No torch.

    {"format": "automodel-branch/1", "parent": {...}, "ancestors": [...], "change": "...", "changed": [...],
     "asked": {...}, "self": "xxh3:..."}

A fork names a run by its path from the folder of the branch, a step of it, and the hash of that step's manifest. The
run it names may be gone: nothing of a branch is read from there once it has begun.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from automodel_cli.errors import CheckpointError
from automodel_cli.files import read_manifest, write_manifest
from automodel_cli.json_files import Count, FileModel, Items, Xxh3, validated

NAME = "branch.json"
MOST_ANCESTORS = 100
MOST_CHANGES = 100
Line = Annotated[str, Field(max_length=4096)]
_LONGEST_PATH, _LONGEST_NAME = 2048, 255  # bytes; a path that a system does not take would be an error at each look


def _usable(path: str) -> str:
    name = max((len(os.fsencode(part)) for part in path.split("/")), default=0)
    if "\0" in path or name > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError("no path of a run")
    return path


RunPath = Annotated[Line, AfterValidator(_usable)]


class Fork(FileModel):
    """A step of a run that another one goes on from."""

    run: Line  # its name
    path: RunPath  # from the folder of the branch
    step: Count
    checkpoint: Xxh3  # hash of the step's manifest


class Lineage(FileModel):
    """What a branch is a branch of, and how it differs from that."""

    parent: Fork
    ancestors: Annotated[Items[Fork], Field(max_length=MOST_ANCESTORS)] = ()  # of the parent, the nearest first
    change: Line  # in a few words
    changed: Annotated[Items[Line], Field(max_length=MOST_CHANGES)] = ()  # each value of the configuration


class BranchFile(Lineage):
    """``branch.json``; ``asked`` is what the command said, so that the same command goes on and another does not."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["automodel-branch/1"] = "automodel-branch/1"
    asked: dict[str, Line] = Field(default_factory=dict)
    self: Xxh3 | None = None

    @property
    def lineage(self) -> Lineage:
        """The part that checkpoints carry."""
        return Lineage(**{name: getattr(self, name) for name in Lineage.model_fields})


def write(run: Path, branch: BranchFile) -> None:
    """Write ``branch.json`` of a run folder."""
    write_manifest(run / NAME, branch.model_dump(mode="json", exclude={"self"}))


def read(run: Path) -> BranchFile | None:
    """``branch.json`` of a run folder; None for a run that is no branch.

    Raises:
        CheckpointError: it was changed since it was written, or is none.
    """
    path = run / NAME
    if not path.exists():
        return None
    return validated(read_manifest(path, CheckpointError), BranchFile, path, CheckpointError)


def parent_folder(run: Path, fork: Fork) -> Path:
    """The run folder that a fork names, as seen from the branch in ``run``; it may be gone."""
    return Path(run, fork.path)
