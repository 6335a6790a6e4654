"""One run from text to files, whatever their format; what happens in order:

1. the place is locked; finished files are left alone, and what is not ours refused
2. :meth:`Build.make` makes the files; the manifest is written last

Interrupted at any point, the same command ends with the same bytes. What a format adds is its ``Build``: where files
go, what writes them, what is said of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from automodel_cli.corpus.build.output import ManifestT, Output
from automodel_cli.corpus.build.pipeline import Progress
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.formats.manifest import Plan
from automodel_cli.corpus.jobs.job import Job, Runner
from automodel_cli.errors import ConfigError
from automodel_cli.text import plural

ProgressCallback = Callable[[Progress], None]
Say = Callable[[str], None]


def silent(_: Any) -> None:
    """Says and shows nothing."""


def uncut_in_words(source: FileSource, job: Job, workers: int | None) -> str | None:
    """That a compressed file is one task, where there are fewer tasks than ``workers`` (None: not known)."""
    tasks, compressed = job.tasks(job.stages[0]), sum(1 for file in source.files if file.compression)
    if not compressed or tasks >= (workers or 2):
        return None
    found = f"{plural(compressed, 'compressed file')} cannot be cut"
    who = plural(tasks, "task") + ("" if workers is None else f" for {workers:,} workers")
    return f"{who} to begin with: {found}; give several files, or unpack them, to keep more workers busy"


class Described(Protocol):
    """Where text comes from."""

    def describe(self) -> dict[str, Any]:
        """For manifests and for comparison."""


class Settings(Protocol):
    """The options that every command has."""

    overwrite: bool
    strict: bool
    dry_run: bool


SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class BuildResult(Generic[ManifestT]):
    """What a run left behind; ``manifest`` is None after a dry run."""

    folder: Path | str
    manifest: ManifestT | None
    already_complete: bool = False
    continued: bool = False
    bad_rows: list[str] = field(default_factory=list)
    engine: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """Who does the work of a run, if not this process alone.

    Attributes:
        open_job: opens the job in another process; can be pickled.
        slots: tasks at a time, where that is known before.
        role: what this process was started for: ``all`` of it, a ``share`` of a stage (others do theirs at the same
            time, and none of them takes the lock), or the ``rest`` of what others began.
    """

    runner: Runner
    open_job: Callable[[], Job]
    slots: int | None = None
    role: Literal["all", "share", "rest"] = "all"

    def run(self, job: Job) -> bool:
        """What :meth:`Runner.run` says of a job that has begun."""
        return self.runner.run(job, self.open_job)


@dataclass(kw_only=True)
class Build(ABC, Generic[SettingsT, ManifestT]):
    """Everything that is settled before the first byte; :meth:`run` does the rest."""

    cfg: SettingsT
    source: Described
    output: Output[ManifestT]
    num_workers: int
    progress: ProgressCallback
    say: Say

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What decides the bytes, besides the source and what tokenizes it."""

    @abstractmethod
    def say_plan(self) -> None:
        """For a dry run."""

    def say_forecast(self, elsewhere: Elsewhere | None) -> None:
        """How long it will take, where a look at some of the text tells."""

    @abstractmethod
    def make(self) -> BuildResult[ManifestT]:
        """Make the files; nothing that is not ours is in their place."""

    def say_uncut(self, job: Job, workers: int | None) -> None:
        """Say that compressed files leave workers without work, where they do."""
        if isinstance(self.source, FileSource) and (line := uncut_in_words(self.source, job, workers)):
            self.say(line)

    def made(self) -> Plan:
        """What decides the bytes, as manifests have it."""
        return {"options": self.options(), "source": self.source.describe()}

    def job(self) -> Job:
        """The run in stages of tasks, for runners.

        Raises:
            ConfigError: it cannot be cut into any.
        """
        raise ConfigError(f"{self.output.what} can only be made on this machine", "leave --runner out")

    def run(self, elsewhere: Elsewhere | None = None) -> BuildResult[ManifestT]:
        """Make the files, unless they are there.

        Args:
            elsewhere: what does the work; None: this process and those that it starts.

        Raises:
            ConfigError: there are files made with other options.
            DataError: the source cannot be read or holds no text; files are damaged.
            AutomodelError: the disk is full, or another process writes here.
        """
        output = self.output
        if self.cfg.dry_run:
            self.say_plan()
            self.say_forecast(elsewhere)
            return BuildResult(output.place, None)
        if elsewhere is not None and elsewhere.role == "share":
            if output.has_manifest and not output.has_begun:  # others did all of it
                self.say(f"{output.shown(output.manifest_path)} is already there: nothing to do")
            else:
                elsewhere.run(self.job())  # begins nothing: where there is no plan, the run is over
            return BuildResult(output.place, None)
        is_rest = elsewhere is not None and elsewhere.role == "rest"
        overwrite = self.cfg.overwrite and not is_rest
        with output.held(wait=is_rest):  # whoever submitted it may still have it
            if not overwrite and (manifest := output.finished(self.made())) is not None:
                self.say(f"{output.shown(output.manifest_path)} is already there: nothing to do")
                result = BuildResult(output.folder, manifest, already_complete=True)
            else:
                output.refuse_strangers()
                if overwrite:
                    output.clear()
                result = self.make() if elsewhere is None else self._make_in_tasks(elsewhere)
            if result.manifest is not None:
                output.send()
            return replace(result, folder=output.place)

    def _make_in_tasks(self, elsewhere: Elsewhere) -> BuildResult[ManifestT]:
        job = self.job()
        if elsewhere.role == "all":
            self.say_forecast(elsewhere)
        job.begin()
        if elsewhere.role == "all":
            self.say_uncut(job, elsewhere.slots)
        return job.finish() if elsewhere.run(job) else BuildResult(self.output.place, None)
