"""The folder of a nanoGPT-style corpus: the names of its files, and the last step that makes it whole."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.build.corpus_writer import CorpusLayout, state_is_on_disk
from automodel_cli.corpus.build.token_output import TokenOutput
from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.journal import PROGRESS_NAME
from automodel_cli.corpus.formats.manifest import (
    MANIFEST_NAME,
    CorpusFile,
    CorpusManifest,
    Eot,
    Plan,
    Role,
    Separator,
    Split,
)
from automodel_cli.corpus.formats.nanogpt_writer import ShardInfo
from automodel_cli.corpus.tokenizer import CharTokenizer, Tokenizer
from automodel_cli.corpus.tokenizers.base import SAVED_FILES
from automodel_cli.files import ANY_TEMPORARY, atomic_file

META_NAME = "meta.pkl"


def _names(stems: str, *, meta: bool) -> re.Pattern[str]:
    """Files that a run writes whose shards begin with one of ``stems``."""
    others = [MANIFEST_NAME, PROGRESS_NAME, *([META_NAME] if meta else [])]
    fixed = "|".join(map(re.escape, others))
    return re.compile(rf"(({stems})(_\d{{5}})?\.(bin|bos\.idx)|{fixed}){ANY_TEMPORARY}")


_ALL_NAMES = _names("dataset|train|val", meta=True)


class NanogptOutput(TokenOutput[CorpusManifest]):
    """A folder of its own: ``dataset.bin`` or ``train.bin``, ``val.bin``, ``tokenizer/``, ``manifest.json``."""

    manifest_type, what, which = CorpusManifest, "a corpus", "run"

    def __init__(self, layout: CorpusLayout, tokenizer: Tokenizer) -> None:
        super().__init__(layout.folder, tokenizer)
        self.layout = layout

    def written_names(self) -> re.Pattern[str]:
        return _names(f"{self.layout.stem('train')}|val", meta=isinstance(self.tokenizer, CharTokenizer))

    def known_names(self) -> re.Pattern[str]:
        return _ALL_NAMES

    def begun_names(self) -> re.Pattern[str]:
        plan = self.journal_plan()
        form = plan["options"].get("format") if plan else None
        if plan is None or form not in ("bin", "raw"):
            return _ALL_NAMES
        stem = "train" if form == "raw" else "dataset"
        return _names(f"{stem}|val", meta=plan["tokenizer"].get("name") == CharTokenizer.name)

    def state_is_on_disk(self, plan: Plan, state: dict[str, Any]) -> bool:
        return state_is_on_disk(self.layout, state)

    def was_made_with_eos(self) -> bool:
        """Whether a run of ours is here, finished or not, whose documents the end-of-text token separates."""
        plan = self.plan_here()
        return plan is not None and bool(plan["options"]) and "separator" not in plan["options"]

    def publish_manifest(
        self,
        shards: dict[Split, list[ShardInfo]],
        plan: Plan,
        *,
        eot: Eot,
        separator: Separator = "eos",
        bad_rows: int,
    ) -> None:
        """Hash every file whose hash is not known, write ``meta.pkl`` and the manifest: the corpus is complete."""
        if isinstance(self.tokenizer, CharTokenizer):
            _write_meta(self.folder / META_NAME, self.tokenizer)
        everything = [shard for group in shards.values() for shard in group]
        manifest = CorpusManifest(
            folder=self.folder,
            layout="raw" if self.layout.layout == "raw" else "bin",
            dtype=self.layout.dtype.name,  # type: ignore[arg-type]
            eot=eot,
            documents=sum(shard.num_documents for shard in everything),
            tokens=sum(shard.num_tokens for shard in everything),
            bad_rows=bad_rows,
            files=tuple(self._describe_files(shards)),
            versions={"automodel": __version__},
            separator=separator,
            **plan,
        )
        manifest.write()
        self.tidy()

    def _describe_files(self, shards: dict[Split, list[ShardInfo]]) -> Iterable[CorpusFile]:
        for split, group in shards.items():
            for info in group:
                counts = {"tokens": info.num_tokens, "documents": info.num_documents}
                yield self._describe(info.path.name, "tokens", split, **counts)
                index = bos_index_path(info.path).name
                yield self._describe(index, "bos_index", split, documents=info.num_documents)
        for path in sorted(self.tokenizer_folder.iterdir()):
            if path.name in SAVED_FILES:
                yield self._describe(f"{self.tokenizer_folder.name}/{path.name}", "tokenizer")
        if isinstance(self.tokenizer, CharTokenizer):
            yield self._describe(META_NAME, "meta")

    def _describe(
        self, name: str, role: Role, split: Split | None = None, *, tokens: int = 0, documents: int = 0
    ) -> CorpusFile:
        facts = self.facts(self.folder / name)
        return CorpusFile(name=name, role=role, split=split, tokens=tokens, documents=documents, **facts)


def _write_meta(path: Path, tokenizer: CharTokenizer) -> None:
    """What nanoGPT's sample.py and train.py read. We never read it: unpickling a file is running it."""
    itos = dict(enumerate(tokenizer.characters))
    stoi = {character: index for index, character in itos.items()}
    with atomic_file(path) as handle:
        pickle.dump({"vocab_size": tokenizer.vocab_size, "itos": itos, "stoi": stoi}, handle, protocol=4)
