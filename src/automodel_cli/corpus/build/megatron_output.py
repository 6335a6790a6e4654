"""The output of one ``preprocess megatron`` run, in a folder that other runs may share: its names, and the last step
that makes it whole. Everything of a run begins with its prefix:

    PREFIX_0_text_document.bin  PREFIX_0_text_document.idx  ...
    PREFIX.tokenizer/     what made the tokens
    PREFIX.manifest.json  written last
    .PREFIX.lock          empty; held while a command writes

and while it runs ``PREFIX.progress.json``, temporaries (``*.tmp``) and, with ``--shuffle`` and ``--shards``,
``.PREFIX.shuffle/`` and ``.PREFIX.spool/``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair, state_is_on_disk
from automodel_cli.corpus.build.token_output import TokenOutput
from automodel_cli.corpus.formats.manifest import Plan
from automodel_cli.corpus.formats.megatron_manifest import (
    SUFFIX,
    MegatronManifest,
    describe_pair,
    describe_tokenizer,
)
from automodel_cli.corpus.tokenizers.base import Tokenizer

_TEMPORARY = r"((\.automodel)?\.tmp)*"  # of a temporary, while a pair is taken back
_SUFFIXES = rf"\.(bin|idx|idx\.lengths|idx\.documents){_TEMPORARY}"


class MegatronOutput(TokenOutput[MegatronManifest]):
    """Names and state of a run's files; ``layout`` is that of the pairs in the end."""

    manifest_type, option = MegatronManifest, "--output-prefix or --output-path"

    def __init__(self, layout: MegatronLayout, tokenizer: Tokenizer) -> None:
        super().__init__(layout.folder, tokenizer, f"{layout.name}.")
        self.layout = layout
        self.what = self.which = layout.name

    @property
    def spool(self) -> MegatronLayout:
        """Where everything is written first with ``--shards``."""
        folder = self.folder / f".{self.layout.name}.spool"
        return replace(self.layout, folder=folder, parts="one", skip_empty=False)

    def known_names(self) -> re.Pattern[str]:
        """Files of this run, and of the run that was here before where it says what it made."""
        keys, levels = set(self.layout.keys), {str(self.layout.level)}
        if (plan := self.journal_plan()) is not None:
            keys |= set(plan["options"].get("keys", ()))
            levels.add(str(plan["options"].get("level", self.layout.level)))
        if (manifest := self.sound_manifest()) is not None:
            keys |= set(manifest.keys)
            levels.add(manifest.level)
        key, level = ("|".join(map(re.escape, sorted(names))) for names in (keys, levels))
        name = re.escape(self.layout.name)
        others = rf"{name}({re.escape(SUFFIX)}|\.progress\.json){_TEMPORARY}"
        return re.compile(rf"{name}_\d+_({key})_({level}){_SUFFIXES}|{others}")

    def hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        return [*super().hidden(), (self.spool.folder, self.known_names())]

    def state_is_on_disk(self, plan: Plan, state: dict[str, Any]) -> bool:
        return state_is_on_disk(self.spool if plan["options"]["shards"] else self.layout, state)

    def publish_manifest(
        self,
        pairs: list[Pair],
        plan: Plan,
        *,
        eod_id: int | None,
        bad_rows: int,
        sources: list[str] | None,
        tools: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Hash every file whose hash is not known, and write the manifest.

        ``sources`` names the input file of each part, ``tools`` versions of packages that decided sequences.
        """
        entries = [describe_pair(self.layout, p, sources[p.part] if sources else None, self.facts) for p in pairs]
        manifest = MegatronManifest(
            folder=self.folder,
            name=self.layout.name,
            keys=self.layout.keys,
            level=self.layout.level,
            dtype=self.layout.dtype.name,  # type: ignore[arg-type]
            eod_id=eod_id,
            documents=sum(pair.documents for pair in pairs),
            sequences=sum(pair.sequences for pair in pairs),
            tokens=sum(pair.tokens for pair in pairs),
            bad_rows=bad_rows,
            pairs=tuple(entries),
            tokenizer_files=describe_tokenizer(self.tokenizer_folder),
            versions={"automodel": __version__, **tools},
            **plan,
        )
        manifest.write()
        self.tidy()
