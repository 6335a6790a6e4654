"""The place of one run's token files: besides what ``output`` knows, the tokenizer's folder and the journal."""

from __future__ import annotations

import re
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli.corpus.build.output import ManifestT, Output, difference, is_ours
from automodel_cli.corpus.formats.journal import FORMAT as JOURNAL_FORMAT
from automodel_cli.corpus.formats.journal import Position, read_progress, remove_progress, write_progress
from automodel_cli.corpus.formats.manifest import Plan
from automodel_cli.corpus.jobs.work_folder import WORK_NAMES, WorkFolder
from automodel_cli.corpus.shuffle.buckets import GATHERED_NAME
from automodel_cli.corpus.tokenizers.base import SAVED_FILES, Tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.files import ANY_TEMPORARY, TEMP_SUFFIX

_TOKENIZER_FILES = re.compile(rf"({'|'.join(map(re.escape, SAVED_FILES))}){ANY_TEMPORARY}")


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
        return is_ours(self.journal_path, JOURNAL_FORMAT)

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


def _equal(path: Path, other: Path) -> bool:
    return other.is_file() and not other.is_symlink() and path.read_bytes() == other.read_bytes()
