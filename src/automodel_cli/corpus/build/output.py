"""The place of one run's files: are they finished, interrupted, of other options, or somebody else's; may they go.

Only what a run of ours wrote is ever replaced or removed. A file is ours if a manifest of ours lists it, if a mark of
ours (of token files a journal) says that a run which writes this name is under way, or if it has the suffix of our
temporaries. At every instant at which a run's files are there, manifest or mark is there as well: the mark is set
before the first file and goes after the last of them that is not in the manifest.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from automodel_cli.corpus.build.mirror import Mirror
from automodel_cli.corpus.formats.manifest import NO_FACTS, Facts, Manifest, Plan, size_and_hash
from automodel_cli.corpus.jobs.array_element import BATCH_FILES
from automodel_cli.corpus.shuffle.buckets import WORK_FILES
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import (
    TEMP_SUFFIX,
    exclusive_lock,
    fsync_folder,
    make_folder,
    names_format,
    remove_known,
    strangers_below,
)

ManifestT = TypeVar("ManifestT", bound=Manifest)
_MOST_SHOWN = 60  # characters of a value


class Output(ABC, Generic[ManifestT]):
    """Names and state of a run's files.

    Attributes:
        folder: where everything goes; other runs may write there too.
        prefix: what the names of manifest, lock and the like begin with.
        what: in messages: what is made.
        option: the flags that choose the place.
    """

    manifest_type: type[ManifestT]
    what: str
    option = "--output-dir"
    mirror: Mirror | None = None
    """What keeps the folder and a place in object storage alike; None on a disk."""
    hashed: Facts = NO_FACTS
    """Of files that were hashed when they were made."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.manifest_path = folder / f"{prefix}manifest.json"
        self.shuffle_folder = folder / f".{prefix}shuffle"
        self.batch_folder = folder / f".{prefix}slurm"
        self.lock_path = folder / f".{prefix}lock"

    @property
    def place(self) -> str:
        """The folder or URL, for people."""
        return str(self.folder) if self.mirror is None else self.mirror.url

    def shown(self, path: Path) -> str:
        """A path in the folder, for people."""
        if self.mirror is None or not path.is_relative_to(self.folder):
            return str(path)
        return "/".join((self.mirror.url, *path.relative_to(self.folder).parts))

    @contextlib.contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """The place is there, and nobody else writes to it: ``wait`` for who does on this disk, or refuse.

        Raises:
            ConfigError: a file is in the way.
            AutomodelError: another process writes there.
        """
        busy = f"another process is writing {self.what} to {self.place}"
        if self.mirror is not None:
            with self.mirror.held(busy, wait=wait):
                names = (self.manifest_path.name, self.journal_name, self.tokenizer_name)
                self.mirror.fetch(self.known_names, self._listed_names, *names, lambda: self._goes_on)
                yield
            return
        make_folder(self.folder, self.option)
        with exclusive_lock(self.lock_path, busy=busy, wait=wait):
            yield

    def _listed_names(self) -> list[str]:
        """Names of the files that the manifest here lists, if there is one."""
        manifest = self.sound_manifest()
        return [] if manifest is None else [path.relative_to(self.folder).as_posix() for path, _ in manifest.listed()]

    def send(self) -> None:
        """The files are complete: so they are in object storage, if that is their place."""
        if self.mirror is not None:
            self.mirror.finish(self.manifest_path.name)

    def facts(self, path: Path) -> dict[str, Any]:
        """``bytes`` and ``xxh3`` of a file that is complete."""
        if (known := self.hashed.get(path.name)) is not None:
            return known
        return size_and_hash(path) if self.mirror is None else self.mirror.facts(path)

    # ------------------------------------------------------------------------------- of each format

    journal_name = tokenizer_name = ""
    """Names in the folder of an unfinished run's journal and of the tokenizer's folder, of formats that have them."""

    @abstractmethod
    def known_names(self) -> re.Pattern[str]:
        """Names that any run with this prefix may have written."""

    def written_names(self) -> re.Pattern[str]:
        """Names that this run writes in the folder, temporary ones too."""
        return self.known_names()

    def begun_names(self) -> re.Pattern[str]:
        """Names that the run under way writes."""
        return self.known_names()

    def hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        """Folders of temporary files, and the names in them."""
        return [(self.shuffle_folder, WORK_FILES)]

    def _all_hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        return [*self.hidden(), (self.batch_folder, BATCH_FILES)]

    @property
    def _goes_on(self) -> bool:
        """Whether the folder holds a run that goes on without a journal."""
        return not self.journal_name and self.has_begun

    @property
    @abstractmethod
    def has_begun(self) -> bool:
        """Whether a run of ours is under way or was interrupted."""

    @abstractmethod
    def mark(self) -> None:
        """Say that a run is under way, so that the next one knows its files for ours."""

    def unmark(self) -> None:
        """The mark goes, the last of all; it may be among what is ``hidden``."""

    # --------------------------------------------------------------------------------- whose it is

    @property
    def has_manifest(self) -> bool:
        """Whether there is a manifest of ours, sound or damaged; a link is none."""
        return is_ours(self.manifest_path, self.manifest_type.FORMAT)

    def sound_manifest(self) -> ManifestT | None:
        """The manifest of the run that was here before, where there is a sound one."""
        with contextlib.suppress(DataError):
            return self.manifest_type.read(self.manifest_path) if self.has_manifest else None
        return None

    def _is_mine(self) -> Callable[[Path], bool]:
        """Whether a path is a file of ours: listed, a temporary, or one that a run under way writes."""
        listed: set[str] = set()
        begun = None
        if (manifest := self.sound_manifest()) is not None:
            listed = {self.manifest_path.name, *(path.name for path, _ in manifest.listed())}
        elif self.has_manifest:
            begun = self.known_names()
        if self.has_begun:
            begun = self.begun_names()

        def is_mine(path: Path) -> bool:
            known = path.name in listed or path.name.endswith(TEMP_SUFFIX)
            known = known or (begun is not None and begun.fullmatch(path.name) is not None)
            return known and path.is_file() and not path.is_symlink()

        return is_mine

    def strangers(self) -> list[Path]:
        """What stands where this run writes and is a link, no file, or not ours."""
        is_mine, written = self._is_mine(), self.written_names()
        found = [path for path in sorted(self.folder.iterdir()) if written.fullmatch(path.name)]
        hidden = [path for folder, names in self._all_hidden() for path in strangers_below(folder, names)]
        return [*(path for path in found if not is_mine(path)), *hidden]

    def refuse_strangers(self) -> None:
        """Before anything is written or removed: nothing that others made may stand where this run writes.

        Raises:
            ConfigError: something does.
        """
        for path in self.strangers():
            raise self._strange(path)

    def _strange(self, path: Path) -> ConfigError:
        return ConfigError(
            f"{self.shown(path.parent)} holds {path.name} but no manifest of ours that lists it",
            f"move it away, or use another {self.option}; --overwrite replaces only what this command made",
        )

    # ------------------------------------------------------------------------------- what may be removed

    def clear(self) -> None:
        """Remove what runs of ours left, the manifest first, so that it never speaks of files that are gone."""
        self._clear([])

    def _clear(self, more: list[tuple[Path, re.Pattern[str]]]) -> None:
        """A mark stands meanwhile: where this is interrupted, the next run knows the rest for ours."""
        if not self.has_begun and not self.has_manifest:
            return
        known, hidden, is_mine = self.known_names(), self._all_hidden(), self._is_mine()
        if not self.has_begun:
            with contextlib.suppress(AutomodelError):  # no room for it
                self.mark()
        self.manifest_path.unlink(missing_ok=True)
        fsync_folder(self.folder)
        self._remove(known, is_mine)
        for folder, names in (*more, *hidden):
            remove_known(folder, names)
        self.unmark()
        if self.mirror is not None:
            self.mirror.removed(known, self.manifest_path.name, self.tokenizer_name)

    def _remove(self, known: re.Pattern[str], may_go: Callable[[Path], bool]) -> None:
        for path in self.folder.iterdir():
            if known.fullmatch(path.name) and may_go(path):
                path.unlink()

    def tidy(self) -> None:
        """All files are complete: what was needed to make them goes, the mark last."""
        known = self.known_names()
        for folder, names in self._all_hidden():
            remove_known(folder, names)
        if self.has_begun:
            self._remove(known, lambda path: path.suffix == ".tmp" and path.is_file())
            self.unmark()

    # ---------------------------------------------------------------------------------------- finished

    def finished(self, plan: Plan) -> ManifestT | None:
        """The manifest of a complete run made just so; None if there is none yet.

        Raises:
            ConfigError: it was made in another way.
            DataError: the manifest or a file is damaged or missing.
        """
        if not self.manifest_path.exists() and not self.manifest_path.is_symlink():
            return None
        if not self.has_manifest:
            raise self._strange(self.manifest_path)
        manifest = self.manifest_type.read(self.manifest_path)
        if manifest.plan != plan:
            raise ConfigError(
                f"{self.place} holds {self.what} made in another way: {difference(manifest.plan, plan)}",
                f"use another {self.option}, or --overwrite to replace it",
            )
        for path, size in manifest.listed():
            if not path.is_file() or path.stat().st_size != size:
                raise DataError(
                    f"{self.shown(path)} is missing or has another size than the manifest says", "use --overwrite"
                )
        self.tidy()  # where a run was killed after the manifest
        return manifest


def is_ours(marker: Path, format_name: str) -> bool:
    """Whether ``marker`` is a file of this format, and no link to one."""
    return not marker.is_symlink() and names_format(marker, format_name)


def difference(made: Plan, asked: Plan) -> str:
    """``max_tokens 100 -> 200, ...``: where two nested plans differ."""
    found = []
    for section in made:
        for key in sorted(set(made[section]) | set(asked[section])):
            old, new = made[section].get(key), asked[section].get(key)
            if isinstance(old, dict) and isinstance(new, dict):
                inner = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
                found += [f"{key}.{name} {_shown(old.get(name))} -> {_shown(new.get(name))}" for name in inner]
            elif old != new:
                found.append(f"{key} {_shown(old)} -> {_shown(new)}")
    return ", ".join(found) or "in no option"


def _shown(value: Any) -> str:
    """A value of a plan, or its beginning."""
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
