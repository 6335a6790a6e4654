"""The output of one ``preprocess megatron`` run, in a folder that other runs may share: its names, may they be used,
and the last step that makes it whole. Everything of a run begins with its prefix:

    PREFIX_0_text_document.bin  PREFIX_0_text_document.idx  ...
    PREFIX.tokenizer/     what made the tokens
    PREFIX.manifest.json  written last
    .PREFIX.lock          empty; held while a command writes

and while it runs ``PREFIX.progress.json``, temporaries (``*.tmp``) and, with ``--shuffle`` and ``--shards``,
``.PREFIX.shuffle/`` and ``.PREFIX.spool/``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.buckets import WORK_FILES
from automodel_cli.corpus.journal import FORMAT as JOURNAL_FORMAT
from automodel_cli.corpus.journal import Position, read_progress, remove_progress, write_progress
from automodel_cli.corpus.megatron_bin import bin_path, idx_path
from automodel_cli.corpus.megatron_manifest import FORMAT as MANIFEST_FORMAT
from automodel_cli.corpus.megatron_manifest import (
    SUFFIX,
    MegatronManifest,
    describe_pair,
    describe_tokenizer,
    read_megatron_manifest,
    write_megatron_manifest,
)
from automodel_cli.corpus.megatron_sink import MegatronLayout, Pair, state_is_on_disk
from automodel_cli.corpus.output_folder import difference
from automodel_cli.corpus.ownership import (
    TOKENIZER_FILES,
    is_ours,
    refuse,
    remove_mine,
    strange_tokenizer,
    strangers,
)
from automodel_cli.corpus.tokenizer_base import Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import TEMP_SUFFIX, fsync_folder, remove_known, strangers_below

_TEMPORARY = r"((\.automodel)?\.tmp)*"  # of a temporary, while a pair is taken back
_SUFFIXES = rf"\.(bin|idx|idx\.lengths|idx\.documents){_TEMPORARY}"


@dataclass(frozen=True)
class MegatronOutput:
    """Names and state of a run's files; ``layout`` is that of the pairs in the end."""

    layout: MegatronLayout

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.layout.folder

    @property
    def manifest_path(self) -> Path:
        """Its presence means: complete."""
        return self.folder / f"{self.layout.name}{SUFFIX}"

    @property
    def lock_path(self) -> Path:
        """Held while a process writes."""
        return self.folder / f".{self.layout.name}.lock"

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer travels with the data."""
        return self.folder / f"{self.layout.name}.tokenizer"

    @property
    def shuffle_folder(self) -> Path:
        """Where documents wait for their turn with ``--shuffle``."""
        return self.folder / f".{self.layout.name}.shuffle"

    @property
    def spool(self) -> MegatronLayout:
        """Where everything is written first with ``--shards``."""
        folder = self.folder / f".{self.layout.name}.spool"
        return replace(self.layout, folder=folder, parts="one", skip_empty=False)

    @property
    def _progress_name(self) -> str:
        return f"{self.layout.name}.progress.json"

    def write_progress(self, plan: dict[str, Any], position: Position) -> None:
        """Publish where a later run would go on."""
        write_progress(self.folder, plan, position, self._progress_name)

    # ------------------------------------------------------------------------------------ what is there

    @property
    def _journal_path(self) -> Path:
        return self.folder / self._progress_name

    def _journal_plan(self) -> dict[str, Any] | None:
        """The plan of the run under way; None without one, or if its journal is damaged."""
        found = read_progress(self.folder, self._progress_name) if self._has_journal else None
        return None if found is None else found[0]

    @property
    def _has_journal(self) -> bool:
        return is_ours(self._journal_path, JOURNAL_FORMAT)

    def _manifest(self) -> MegatronManifest | None:
        """The manifest of the run that was here before, where there is a sound one."""
        try:
            return read_megatron_manifest(self.manifest_path)
        except DataError:
            return None

    def _names(self) -> re.Pattern[str]:
        """Files of this run, and of the run that was here before where it says what it made."""
        keys, levels = set(self.layout.keys), {str(self.layout.level)}
        if (plan := self._journal_plan()) is not None:
            keys |= set(plan["options"].get("keys", ()))
            levels.add(str(plan["options"].get("level", self.layout.level)))
        if (manifest := self._manifest()) is not None:
            keys |= set(manifest.keys)
            levels.add(manifest.level)
        key, level = ("|".join(map(re.escape, sorted(names))) for names in (keys, levels))
        name = re.escape(self.layout.name)
        others = rf"{name}({re.escape(SUFFIX)}|\.progress\.json){_TEMPORARY}"
        return re.compile(rf"{name}_\d+_({key})_({level}){_SUFFIXES}|{others}")

    def _is_mine(self) -> Callable[[str], bool]:
        """Whether a file of such a name is one that a manifest lists or a run under way writes."""
        manifest = self._manifest()
        damaged = manifest is None and is_ours(self.manifest_path, MANIFEST_FORMAT)
        everything = damaged or self._has_journal
        listed = {bin_path(pair.name).name for pair in manifest.pairs} if manifest else set()
        listed |= {idx_path(pair.name).name for pair in manifest.pairs} if manifest else set()
        listed |= {self.manifest_path.name} if manifest else set()
        return lambda name: everything or name in listed

    def refuse_strangers(self, tokenizer: Tokenizer) -> None:
        """Before anything is written or removed: nothing that others made may stand where this run writes.

        Raises:
            ConfigError: something does.
        """
        ours = self._has_journal or is_ours(self.manifest_path, MANIFEST_FORMAT)
        found = strangers(self.folder, self._names(), self._is_mine())
        found += strange_tokenizer(self.tokenizer_folder, tokenizer, ours=ours)
        found += strangers_below(self.shuffle_folder, WORK_FILES)
        found += strangers_below(self.spool.folder, self._names())
        refuse(found, "--output-prefix or --output-path")

    def clear(self, *, keep_tokenizer: bool = False) -> None:
        """Remove what a run with this prefix wrote, the manifest first, so that it never speaks of what is gone.

        A journal stands meanwhile: where this is interrupted, the next run knows the rest for ours.
        """
        names, is_mine, manifest = self._names(), self._is_mine(), self._manifest()
        if not self._has_journal and not is_ours(self.manifest_path, MANIFEST_FORMAT):
            return
        if not self._has_journal:
            made = {
                "options": manifest.options if manifest else {},
                "source": manifest.source if manifest else {},
                "tokenizer": manifest.tokenizer if manifest else {},
            }
            with contextlib.suppress(AutomodelError):  # no room for it
                self.write_progress(made, Position())
        self.manifest_path.unlink(missing_ok=True)
        fsync_folder(self.folder)
        remove_mine(self.folder, names, lambda name: name != self._progress_name and is_mine(name))
        self._remove_hidden(names)
        if not keep_tokenizer:
            remove_known(self.tokenizer_folder, TOKENIZER_FILES)
        remove_progress(self.folder, self._progress_name)

    def _remove_hidden(self, names: re.Pattern[str]) -> None:
        """The long pairs are divided, the shuffled documents written."""
        remove_known(self.spool.folder, names)
        remove_known(self.shuffle_folder, WORK_FILES)

    def _tidy(self) -> None:
        """The files are complete: what was needed to make them goes, the journal last."""
        names = self._names()
        self._remove_hidden(names)
        if self._has_journal:
            remove_mine(self.folder, names, lambda name: name.endswith(".tmp"))
            remove_progress(self.folder, self._progress_name)

    def finished(
        self, options: dict[str, Any], source: dict[str, Any], tokenizer: Tokenizer
    ) -> MegatronManifest | None:
        """The manifest of a complete run made just so; None if there is none yet.

        Raises:
            ConfigError: it was made in another way.
            DataError: the manifest or a file is damaged or missing.
        """
        if not self.manifest_path.exists() and not self.manifest_path.is_symlink():
            return None
        if not is_ours(self.manifest_path, MANIFEST_FORMAT):
            refuse([self.manifest_path], "--output-prefix or --output-path")
        manifest = read_megatron_manifest(self.manifest_path)
        made = {"options": manifest.options, "source": manifest.source, "tokenizer": manifest.tokenizer}
        asked = {"options": options, "source": source, "tokenizer": tokenizer.describe()}
        if made != asked:
            raise ConfigError(
                f"{self.folder} holds {self.layout.name} made in another way: {difference(made, asked)}",
                "use another --output-prefix or --output-path, or --overwrite to replace it",
            )
        for pair in manifest.pairs:
            prefix = manifest.prefix(pair)
            for path, size in ((bin_path(prefix), pair.bin_bytes), (idx_path(prefix), pair.idx_bytes)):
                if not path.is_file() or path.stat().st_size != size:
                    raise DataError(
                        f"{path} is missing or has another size than the manifest says", "use --overwrite"
                    )
        self._tidy()  # where a run was killed after the manifest
        return manifest

    def interrupted_position(self, plan: dict[str, Any], say: Callable[[str], None]) -> Position | None:
        """Where an interrupted run of the same plan stopped, or None to begin; clears what cannot be continued.

        Raises:
            ConfigError: there is an interrupted run of another plan.
        """
        if not self._journal_path.exists():
            return None
        found = read_progress(self.folder, self._progress_name)
        if found is None:
            say(f"{self._journal_path} is damaged: starting over")
            self.clear()
            return None
        made, position = found
        if made != plan:
            raise ConfigError(
                f"{self.folder} holds an interrupted {self.layout.name} made in another way: "
                f"{difference(made, plan)}",
                "use another --output-prefix or --output-path, or --overwrite to start over",
            )
        written = self.spool if plan["options"]["shards"] else self.layout
        self._rename_old_temporaries(written)
        if position.writer is not None and not state_is_on_disk(written, position.writer):
            say(f"files of the interrupted {self.layout.name} in {self.folder} are gone: starting over")
            self.clear()
            return None
        if position.cursor is None:
            return None
        say(f"continuing the interrupted {self.layout.name} in {self.folder}")
        return position

    def _rename_old_temporaries(self, written: MegatronLayout) -> None:
        """Versions before wrote ``NAME.tmp``."""
        names = self._names()
        for path in sorted(written.folder.glob("*.tmp")):
            if names.fullmatch(path.name) and TEMP_SUFFIX not in path.name:
                path.replace(path.with_name(path.name.replace(".tmp", TEMP_SUFFIX)))

    # ------------------------------------------------------------------------------------ the last step

    def publish_manifest(
        self,
        pairs: list[Pair],
        *,
        tokenizer: Tokenizer,
        eod_id: int | None,
        bad_rows: int,
        sources: list[str] | None,
        source: dict[str, Any],
        options: dict[str, Any],
        tools: Mapping[str, str] = MappingProxyType({}),
    ) -> MegatronManifest:
        """Hash every file and write the manifest.

        ``sources`` names the input file of each part, ``tools`` versions of packages that decided sequences.
        """
        entries = [describe_pair(self.layout, p, sources[p.part] if sources else None) for p in pairs]
        manifest = MegatronManifest(
            folder=self.folder,
            name=self.layout.name,
            keys=self.layout.keys,
            level=self.layout.level,
            dtype=self.layout.dtype.name,  # type: ignore[arg-type]
            eod_id=eod_id,
            tokenizer=tokenizer.describe(),
            documents=sum(pair.documents for pair in pairs),
            sequences=sum(pair.sequences for pair in pairs),
            tokens=sum(pair.tokens for pair in pairs),
            bad_rows=bad_rows,
            pairs=tuple(entries),
            tokenizer_files=describe_tokenizer(self.tokenizer_folder),
            source=source,
            options=options,
            versions={"automodel": __version__, **tools},
        )
        write_megatron_manifest(manifest)
        self._tidy()
        return manifest
