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

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.journal import Position, read_progress, remove_progress, write_progress
from automodel_cli.corpus.megatron_bin import bin_path, idx_path
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
from automodel_cli.corpus.tokenizer_base import Tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import fsync_folder

_SUFFIXES = r"\.(bin|idx|idx\.lengths|idx\.documents)(\.tmp)*"


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

    def _pairs_pattern(self) -> re.Pattern[str]:
        """Names of pairs of this run, and of the run that was here before where it says what it made."""
        keys, levels = set(self.layout.keys), {self.layout.level}
        found = read_progress(self.folder, self._progress_name)
        if found is not None:
            keys |= set(found[0]["options"]["keys"])
            levels.add(found[0]["options"]["level"])
        try:
            manifest = read_megatron_manifest(self.manifest_path)
        except DataError:
            manifest = None
        if manifest is not None:
            keys |= set(manifest.keys)
            levels.add(manifest.level)  # type: ignore[arg-type]
        key, level = ("|".join(map(re.escape, sorted(names))) for names in (keys, levels))
        return re.compile(rf"{re.escape(self.layout.name)}_\d+_({key})_({level}){_SUFFIXES}")

    def clear(self) -> None:
        """Remove what a run with this prefix writes, the manifest first, so that it never speaks of what is gone."""
        pattern = self._pairs_pattern()
        self.manifest_path.unlink(missing_ok=True)
        fsync_folder(self.folder)
        for path in self.folder.iterdir():
            if pattern.fullmatch(path.name):
                path.unlink()
        for path in (self.manifest_path, self.folder / self._progress_name):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        self._remove_hidden()
        shutil.rmtree(self.tokenizer_folder, ignore_errors=True)

    def _remove_hidden(self) -> None:
        """The long pairs are divided, the shuffled documents written."""
        for folder in (self.spool.folder, self.shuffle_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def finished(
        self, options: dict[str, Any], source: dict[str, Any], tokenizer: Tokenizer
    ) -> MegatronManifest | None:
        """The manifest of a complete run made just so; None if there is none yet.

        Raises:
            ConfigError: it was made in another way.
            DataError: the manifest or a file is damaged or missing.
        """
        if not self.manifest_path.exists():
            return None
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
        remove_progress(self.folder, self._progress_name)  # killed between the two
        self._remove_hidden()
        return manifest

    def interrupted_position(self, plan: dict[str, Any], say: Callable[[str], None]) -> Position | None:
        """Where an interrupted run of the same plan stopped, or None to begin; clears what cannot be continued.

        Raises:
            ConfigError: there is an interrupted run of another plan, or there are files that are not ours.
        """
        if not (self.folder / self._progress_name).exists():
            self._refuse_foreign()
            return None
        found = read_progress(self.folder, self._progress_name)
        if found is None:
            say(f"{self.folder / self._progress_name} is damaged: starting over")
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
        if position.writer is not None and not state_is_on_disk(written, position.writer):
            say(f"files of the interrupted {self.layout.name} in {self.folder} are gone: starting over")
            self.clear()
            return None
        if position.cursor is None:
            return None
        say(f"continuing the interrupted {self.layout.name} in {self.folder}")
        return position

    def _refuse_foreign(self) -> None:
        pattern = self._pairs_pattern()
        foreign = sorted(path.name for path in self.folder.iterdir() if pattern.fullmatch(path.name))
        if foreign:
            raise ConfigError(
                f"{self.folder} holds {foreign[0]} but no {self.manifest_path.name} of ours",
                "use another --output-prefix or --output-path, or --overwrite to replace it",
            )

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
            dtype=self.layout.dtype.name,
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
        remove_progress(self.folder, self._progress_name)
        self._remove_leftovers()
        return manifest

    def _remove_leftovers(self) -> None:
        """Temporaries of a run that was killed while it published."""
        self._remove_hidden()
        pattern = self._pairs_pattern()
        for path in self.folder.glob("*.tmp"):
            if pattern.fullmatch(path.name) or path.name == f"{self._progress_name}.tmp":
                path.unlink()
