"""The place of one run's files: are they finished, interrupted, or of other options; may they go; what is left to tidy.

A run writes its files, its tokenizer's folder and, last, its manifest. Before the manifest is there a journal says how
far it came. One class for both formats: a subclass names its files and reads its manifest.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from automodel_cli.corpus.formats.journal import FORMAT as JOURNAL_FORMAT
from automodel_cli.corpus.formats.journal import Position, read_progress, remove_progress, write_progress
from automodel_cli.corpus.formats.manifest import Manifest
from automodel_cli.corpus.formats.ownership import (
    TOKENIZER_FILES,
    is_ours,
    refuse,
    remove_mine,
    strange_tokenizer,
    strangers,
)
from automodel_cli.corpus.shuffle.buckets import GATHERED_NAME, WORK_FILES
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import TEMP_SUFFIX, fsync_folder, remove_known, strangers_below

ManifestT = TypeVar("ManifestT", bound=Manifest)
Plan = dict[str, Any]  # options, source and tokenizer: what decides the bytes


class Output(ABC, Generic[ManifestT]):
    """Names and state of a run's files.

    Attributes:
        folder: where everything goes; other runs may write there too.
        prefix: what the names of manifest, journal, lock and tokenizer begin with.
        what, which: in messages: what is made, and which interrupted run it is.
        option: the flags that choose the place.
        manifest_format: as the manifest says it.
    """

    what: str
    which: str
    option: str
    manifest_format: str

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.manifest_path = folder / f"{prefix}manifest.json"
        self.journal_path = folder / f"{prefix}progress.json"
        self.tokenizer_folder = folder / f"{prefix}tokenizer"
        self.shuffle_folder = folder / f".{prefix}shuffle"
        self.lock_path = folder / f".{prefix}lock"

    # ------------------------------------------------------------------------------- of each format

    @abstractmethod
    def read_manifest(self) -> ManifestT:
        """The manifest.

        Raises:
            DataError: it is missing or damaged.
        """

    @abstractmethod
    def files_of(self, manifest: ManifestT) -> Iterable[tuple[Path, int]]:
        """What a manifest lists besides the tokenizer, and the bytes of each."""

    @abstractmethod
    def written_names(self, tokenizer: Tokenizer) -> re.Pattern[str]:
        """Names that this run writes in the folder, temporary ones too."""

    @abstractmethod
    def known_names(self) -> re.Pattern[str]:
        """Names that any run with this prefix may have written."""

    def begun_names(self, plan: Plan | None) -> re.Pattern[str]:
        """Names that the run of a journal with this ``plan`` writes; None: the journal is damaged."""
        return self.known_names()

    def hidden(self) -> Iterable[tuple[Path, re.Pattern[str]]]:
        """Folders of temporary files, and the names in them."""
        return [(self.shuffle_folder, WORK_FILES)]

    @abstractmethod
    def state_is_on_disk(self, plan: Plan, state: dict[str, Any]) -> bool:
        """Whether the files that a writer's ``state`` speaks of are there."""

    # ------------------------------------------------------------------------------------ what is there

    def write_progress(self, plan: Plan, position: Position) -> None:
        """Publish where a later run would go on."""
        write_progress(self.folder, plan, position, self.journal_path.name)

    def _read_progress(self) -> tuple[Plan, Position] | None:
        return read_progress(self.folder, self.journal_path.name)

    @property
    def _has_journal(self) -> bool:
        return is_ours(self.journal_path, JOURNAL_FORMAT)

    @property
    def _has_manifest(self) -> bool:
        return is_ours(self.manifest_path, self.manifest_format)

    def sound_manifest(self) -> ManifestT | None:
        """The manifest of the run that was here before, where there is a sound one."""
        try:
            return self.read_manifest() if self._has_manifest else None
        except DataError:
            return None

    def journal_plan(self) -> Plan | None:
        """The plan of the run under way; None without one, or if its journal is damaged."""
        found = self._read_progress() if self._has_journal else None
        return None if found is None else found[0]

    def plan_here(self) -> Plan | None:
        """How the files here are, or were to be, made; None where nobody says."""
        if (plan := self.journal_plan()) is not None:
            return plan
        manifest = self.sound_manifest()
        return None if manifest is None else manifest.plan

    def _is_mine(self) -> Callable[[str], bool]:
        """Whether a manifest of ours lists a file of such a name, or a run under way writes it."""
        listed: set[str] = set()
        begun = None
        if (manifest := self.sound_manifest()) is not None:
            listed = {self.manifest_path.name, *(path.name for path, _ in self.files_of(manifest))}
        elif self._has_manifest:
            begun = self.known_names()
        if self._has_journal:
            begun = self.begun_names(self.journal_plan())
        return lambda name: name in listed or (begun is not None and begun.fullmatch(name) is not None)

    def refuse_strangers(self, tokenizer: Tokenizer) -> None:
        """Before anything is written or removed: nothing that others made may stand where this run writes.

        Raises:
            ConfigError: something does.
        """
        ours = self._has_journal or self._has_manifest
        found = strangers(self.folder, self.written_names(tokenizer), self._is_mine())
        found += strange_tokenizer(self.tokenizer_folder, tokenizer, ours=ours)
        for folder, names in self.hidden():
            found += strangers_below(folder, names)
        refuse(found, self.option)

    # ------------------------------------------------------------------------------- what may be removed

    def clear(self, *, keep_tokenizer: bool = False) -> None:
        """Remove what runs of ours left, the manifest first, so that it never speaks of files that are gone.

        A journal stands meanwhile: where this is interrupted, the next run knows the rest for ours.
        """
        if not self._has_journal and not self._has_manifest:
            return
        known, hidden, is_mine = self.known_names(), list(self.hidden()), self._is_mine()
        if not self._has_journal:
            with contextlib.suppress(AutomodelError):  # no room for it
                plan = self.plan_here() or {"options": {}, "source": {}, "tokenizer": {}}
                self.write_progress(plan, Position())
        self.manifest_path.unlink(missing_ok=True)
        fsync_folder(self.folder)
        remove_mine(self.folder, known, lambda name: name != self.journal_path.name and is_mine(name))
        if not keep_tokenizer:
            remove_known(self.tokenizer_folder, TOKENIZER_FILES)
        for folder, names in hidden:
            remove_known(folder, names)
        remove_progress(self.folder, self.journal_path.name)

    def tidy(self) -> None:
        """All files are complete: what was needed to make them goes, the journal last."""
        known = self.known_names()
        for folder, names in self.hidden():
            remove_known(folder, names)
        if self._has_journal:
            remove_mine(self.folder, known, lambda name: name.endswith(".tmp"))
            remove_progress(self.folder, self.journal_path.name)

    # ---------------------------------------------------------------------------- finished, interrupted

    def finished(self, plan: Plan) -> ManifestT | None:
        """The manifest of a complete run made just so; None if there is none yet.

        Raises:
            ConfigError: it was made in another way.
            DataError: the manifest or a file is damaged or missing.
        """
        if not self.manifest_path.exists() and not self.manifest_path.is_symlink():
            return None
        if not self._has_manifest:
            refuse([self.manifest_path], self.option)
        manifest = self.read_manifest()
        if manifest.plan != plan:
            raise ConfigError(
                f"{self.folder} holds {self.what} made in another way: {difference(manifest.plan, plan)}",
                f"use another {self.option}, or --overwrite to replace it",
            )
        refuse_other_sizes(self.files_of(manifest))
        self.tidy()  # where a run was killed after the manifest
        return manifest

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
        if made != plan:
            raise ConfigError(
                f"{self.folder} holds an interrupted {self.which} made in another way: {difference(made, plan)}",
                f"use another {self.option}, or --overwrite to start over",
            )
        self._rename_old_temporaries()
        if not self._can_continue(plan, position):
            say(f"files of the interrupted {self.which} in {self.folder} are gone: starting over")
            self.clear()
            return None
        if position.cursor is None:
            return None
        say(f"continuing the interrupted {self.which} in {self.folder}")
        return position

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


def refuse_other_sizes(files: Iterable[tuple[Path, int]]) -> None:
    """Check that ``files`` are there with their bytes.

    Raises:
        DataError: one is not.
    """
    for path, size in files:
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(
                f"{path} is missing or has another size than the manifest says", "use --overwrite"
            )


def difference(made: Plan, asked: Plan) -> str:
    """``max_tokens 100 -> 200, ...``: where two nested plans differ."""
    parts = []
    for section in made:
        for key in sorted(set(made[section]) | set(asked[section])):
            old, new = made[section].get(key), asked[section].get(key)
            if old != new:
                parts.append(f"{key} {old} -> {new}")
    return ", ".join(parts) or "in no option"
