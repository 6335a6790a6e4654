"""The place of one run's files: are they finished, interrupted, of other options, or somebody else's; may they go.

Only what a run of ours wrote is ever replaced or removed. A file is ours if a manifest of ours lists it, if a mark of
ours (of token files a journal) says that a run which writes this name is under way, or if it has the suffix of our
temporaries. At every instant at which a run's files are there, manifest or mark is there as well: the mark is set
before the first file and goes after the last of them that is not in the manifest.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from automodel_cli.corpus.build.mirror import Mirror
from automodel_cli.corpus.formats.journal import FORMAT as JOURNAL_FORMAT
from automodel_cli.corpus.formats.journal import Position, read_progress, remove_progress, write_progress
from automodel_cli.corpus.formats.manifest import NO_FACTS, Facts, Manifest, Plan, size_and_hash
from automodel_cli.corpus.jobs.array_element import BATCH_FILES
from automodel_cli.corpus.jobs.work_folder import WORK_NAMES, WorkFolder
from automodel_cli.corpus.shuffle.buckets import GATHERED_NAME, WORK_FILES
from automodel_cli.corpus.tokenizers.base import SAVED_FILES, Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import (
    ANY_TEMPORARY,
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
_TOKENIZER_FILES = re.compile(rf"({'|'.join(map(re.escape, SAVED_FILES))}){ANY_TEMPORARY}")


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
        return _is_ours(self.manifest_path, self.manifest_type.FORMAT)

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


class TokenOutput(Output[ManifestT]):
    """Token files with the folder of their tokenizer; a journal says how far an unfinished run came.

    Attributes:
        which: in messages: which interrupted run it is.
    """

    which: str

    def __init__(self, folder: Path, tokenizer: Tokenizer, prefix: str = "") -> None:
        super().__init__(folder, prefix)
        self.work = WorkFolder(work_path(folder, prefix))
        self.tokenizer = tokenizer
        self.journal_name, self.tokenizer_name = f"{prefix}progress.json", f"{prefix}tokenizer"
        self.journal_path, self.tokenizer_folder = folder / self.journal_name, folder / self.tokenizer_name

    def hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        return [*super().hidden(), (self.work.path, WORK_NAMES)]

    @abstractmethod
    def state_is_on_disk(self, plan: Plan, state: dict[str, Any]) -> bool:
        """Whether the files that a writer's ``state`` speaks of are there."""

    @property
    def has_begun(self) -> bool:
        return _is_ours(self.journal_path, JOURNAL_FORMAT)

    def mark(self) -> None:
        self.write_progress(self.plan_here() or {"options": {}, "source": {}, "tokenizer": {}}, Position())

    def unmark(self) -> None:
        remove_progress(self.folder, self.journal_path.name)

    def _remove(self, known: re.Pattern[str], may_go: Callable[[Path], bool]) -> None:
        super()._remove(known, lambda path: path != self.journal_path and may_go(path))

    def clear(self, *, keep_tokenizer: bool = False) -> None:
        """As the base; the tokenizer too, unless it was here before us."""
        self._clear([] if keep_tokenizer else [(self.tokenizer_folder, _TOKENIZER_FILES)])

    def strangers(self) -> list[Path]:
        """Also the tokenizer's folder where it must not be saved in: a link, or somebody's other tokenizer."""
        return [*super().strangers(), *([self.tokenizer_folder] if self._tokenizer_is_strange() else [])]

    def _tokenizer_is_strange(self) -> bool:
        folder = self.tokenizer_folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            return True
        saved = folder.iterdir() if folder.exists() else ()
        if self.has_begun or self.has_manifest or not any(_TOKENIZER_FILES.fullmatch(p.name) for p in saved):
            return False
        with tempfile.TemporaryDirectory(prefix="automodel-tokenizer-") as name:
            self.tokenizer.save(name)
            return not all(_equal(path, folder / path.name) for path in Path(name).iterdir())

    # ------------------------------------------------------------------------------------ interrupted

    def write_progress(self, plan: Plan, position: Position) -> None:
        """Publish where a later run would go on."""
        write_progress(self.folder, plan, position, self.journal_path.name)
        if self.mirror is not None:
            last = frozenset((self.journal_path.name, self.manifest_path.name))
            self.mirror.note(self.known_names(), last, self.journal_path)

    def _read_progress(self) -> tuple[Plan, Position] | None:
        return read_progress(self.folder, self.journal_path.name)

    def journal_plan(self) -> Plan | None:
        """The plan of the run under way; None without one, or if its journal is damaged."""
        found = self._read_progress() if self.has_begun else None
        return None if found is None else found[0]

    def plan_here(self) -> Plan | None:
        """How the files here are, or were to be, made; None where nobody says."""
        if (plan := self.journal_plan()) is not None:
            return plan
        manifest = self.sound_manifest()
        return None if manifest is None else manifest.plan

    def interrupted_position(self, plan: Plan, say: Callable[[str], None]) -> Position | None:
        """Where an interrupted run of the same plan stopped, or None to begin; clears what cannot be continued.

        Raises:
            ConfigError: there is an interrupted run of another plan.
        """
        if not self.journal_path.exists():
            return None
        found = self._read_progress()
        if found is None:
            say(f"{self.journal_path} is damaged: starting over")
            self.clear()
            return None
        made, position = found
        self._refuse_other(made, plan)
        if position.phase == "parts":
            raise ConfigError(
                f"{self.place} holds an unfinished {self.which} in tasks, which other machines may be doing",
                "go on with its --runner, or stop them and start over with --overwrite",
            )
        self._rename_old_temporaries()
        if not self._can_continue(plan, position):
            say(f"files of the interrupted {self.which} in {self.place} are gone: starting over")
            self.clear()
            return None
        if position.cursor is None:
            return None
        say(f"continuing the interrupted {self.which} in {self.place}")
        return position

    def refuse_interrupted(self, plan: Plan, say: Callable[[str], None]) -> None:
        """Before a run in tasks begins, or goes on: no run of one process, or of another plan, was interrupted here.

        Raises:
            ConfigError: one was.
        """
        if not self.journal_path.exists():
            return
        found = self._read_progress()
        if found is None:
            say(f"{self.journal_path} is damaged: starting over")
            self.clear()
            return
        made, position = found
        self._refuse_other(made, plan)
        if position.phase != "parts" and position.cursor is not None:
            raise ConfigError(
                f"{self.folder} holds an interrupted {self.which} of one machine, which cannot go on in tasks",
                "go on without --runner, or start over with --overwrite",
            )

    def _refuse_other(self, made: Plan, plan: Plan) -> None:
        if made != plan:
            raise ConfigError(
                f"{self.folder} holds an interrupted {self.which} made in another way: {difference(made, plan)}",
                f"use another {self.option}, or --overwrite to start over",
            )

    def _can_continue(self, plan: Plan, position: Position) -> bool:
        """Whether the files are there that ``position`` speaks of (a version before shuffled tokens, not text)."""
        in_buckets = position.phase == "write" and "key" in (position.cursor or {})
        if in_buckets and not (self.shuffle_folder / GATHERED_NAME).is_dir():
            return False
        return position.writer is None or self.state_is_on_disk(plan, position.writer)

    def _rename_old_temporaries(self) -> None:
        """Versions before wrote ``NAME.tmp``."""
        names = self.known_names()
        for folder in (self.folder, *(folder for folder, _ in self.hidden())):
            for path in sorted(folder.glob("*.tmp")):
                if names.fullmatch(path.name) and TEMP_SUFFIX not in path.name:
                    path.replace(path.with_name(path.name.replace(".tmp", TEMP_SUFFIX)))


def work_path(folder: Path, prefix: str = "") -> Path:
    """Where a run in tasks keeps what is under way."""
    return folder / f".{prefix}work"


def _is_ours(marker: Path, format_name: str) -> bool:
    return not marker.is_symlink() and names_format(marker, format_name)


def _equal(path: Path, other: Path) -> bool:
    return other.is_file() and not other.is_symlink() and path.read_bytes() == other.read_bytes()


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
