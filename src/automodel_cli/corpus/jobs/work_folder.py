"""The folder of a job that is under way, ``.work`` in the output's: what is in it, and how things are put there.

    lock                             held while a plan is made
    plan.json                        what decides the bytes, the parts, facts that only a reading of the text could tell
    reference.json                   the fast engine was wrong: what was made with it does not count
    first/ or reference/             what the engine made that is named so:
        part_000003.json             a part is done: its sizes and hashes, and the names of its files
        part_000003.TAG.json         the same, for those who rely on just these files
        part_000003.TAG.tokens       the ids of a part
        part_000003.TAG.chunks       everything about them that is needed to divide them
        arranged.json                the files that there will be, and where their ids come from
        TAG/...                      indices of those files, and the ranges of ids that they are made of
        file_000003.json             a file is made: size and hash
        file_000003.TAG.bin          the file

Nothing here is ever changed. A JSON file is published whole, after what it names; TAG is nobody else's. So processes
that do the same do no harm to each other, and a process that dies leaves nothing but a file that nobody names.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field

from automodel_cli.corpus.jobs.settled import Settled
from automodel_cli.errors import AutomodelError
from automodel_cli.files import (
    disk_errors_named,
    exclusive_lock,
    fsync_file,
    manifest_text,
    publish,
    read_manifest,
    temporary_of,
)
from automodel_cli.json_files import Count, FileModel, Items, validated

PLAN_FORMAT = "automodel-job/1"
DOUBT_FORMAT = "automodel-doubt/1"
Model = TypeVar("Model")
_TAG = r"[0-9a-f]{16}"
_TEMPORARY = rf"(\.{_TAG}\.automodel\.tmp)?"
_IN_ENGINE = (
    rf"(part|file)_\d{{6,}}(\.{_TAG})?\.json{_TEMPORARY}|(part|file)_\d{{6,}}\.{_TAG}\.(tokens|chunks|bin)|"
    rf"arranged\.json{_TEMPORARY}"
)
WORK_NAMES = re.compile(
    rf"lock|(plan|reference)\.json{_TEMPORARY}|(first|reference)/({_IN_ENGINE}|{_TAG}/(spool/)?[^/]+)"
)
_AGAIN = "run the same command again"


class JobError(AutomodelError):
    """What a job left is not there, or not whole: machines do not see the same files, or a disk is damaged."""


def new_tag() -> str:
    """A name that no other process uses."""
    return os.urandom(8).hex()


class JobPlan(FileModel):
    """What ``plan.json`` holds.

    Attributes:
        plan: what decides the bytes.
        parts: fields of ``documents.parts.Part``, in order.
        brought: whether the tokenizer's folder was there before.
    """

    model_config = ConfigDict(extra="forbid")

    plan: dict[str, Any]
    parts: Items[Annotated[tuple[Count, Count, Count, Count, Count], Field(strict=False)]]
    settled: Settled | None
    brought: bool


class _Doubt(FileModel):
    reason: str


class WorkFolder:
    """Names in the folder, and what is said about the job as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plan_path, self._doubt_path = path / "plan.json", path / "reference.json"

    def plan(self) -> JobPlan | None:
        """The plan of the job that has begun, if one has.

        Raises:
            JobError: it is damaged.
        """
        return read_published(self._plan_path, JobPlan, PLAN_FORMAT) if self._plan_path.exists() else None

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """One process at a time: many may be told to begin."""
        self.path.mkdir(exist_ok=True)
        with exclusive_lock(self.path / "lock", busy="", wait=True):
            yield

    def make_folders(self) -> None:
        """Make what tasks write to; they make no folder, so that none of them writes to a job that is over."""
        for name in ("first", "reference"):
            (self.path / name).mkdir(exist_ok=True)

    def write_plan(self, plan: JobPlan) -> None:
        """Publish the plan: from here on there are tasks."""
        publish_json(self._plan_path, {"format": PLAN_FORMAT, **plan.model_dump(mode="json")})

    def settled(self, key: str) -> Settled:
        """What is known of what ``key`` is the hash of."""
        with contextlib.suppress(JobError):
            plan = self.plan()
            if plan is not None and plan.settled is not None and plan.settled.key == key:
                return plan.settled
        return Settled(key=key)

    def engine(self, *, doubted: bool) -> Path:
        """The folder of what counts, after ``doubt``."""
        return self.path / ("reference" if doubted else "first")

    @property
    def doubt(self) -> str | None:
        """Why the fast engine is not trusted; None while it is."""
        if not self._doubt_path.exists():
            return None
        return read_published(self._doubt_path, _Doubt, DOUBT_FORMAT).reason

    def doubt_engine(self, reason: str) -> None:
        """The fast engine is wrong about some text: what it made does not count any more."""
        publish_json(self._doubt_path, {"format": DOUBT_FORMAT, "reason": reason})


def publish_json(path: Path, body: dict[str, Any]) -> None:
    """Publish ``body`` with a hash of itself; others may publish the same at the same time.

    Raises:
        AutomodelError: the disk is full, or the folder is gone: the job is finished, or was started over.
    """
    temporary = temporary_of(path.with_name(f"{path.name}.{new_tag()}"))
    try:
        with gone_named(path), disk_errors_named(path):
            with temporary.open("x", encoding="utf-8") as handle:
                handle.write(manifest_text(body))
                fsync_file(handle)
            publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def gone_named(path: Path) -> Iterator[None]:
    """A missing folder as an error for people."""
    try:
        yield
    except FileNotFoundError as error:
        raise JobError(f"{error.filename} is gone: the job is finished, or was started over", _AGAIN) from error


def read_published(path: Path, model: type[Model], format_name: str) -> Model:
    """What :func:`publish_json` wrote.

    Raises:
        JobError: it is missing, damaged, or of another format.
    """
    body = read_manifest(path, JobError)
    found = body.pop("format", None)
    if found != format_name:
        raise JobError(f"{path} has format {found!r}, expected {format_name!r}", "start over with --overwrite")
    del body["self"]
    return validated(body, model, path, JobError)
