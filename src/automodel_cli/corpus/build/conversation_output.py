"""The folder of ``preprocess chat``: files of conversations by task and split, the order of the mixture, the manifest.

A file that is published is whole, so an interrupted run goes on with the first task and split that has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.build.token_output import TokenOutput
from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.conversation_files import ORDER_NAME, ConversationFile, mask_path
from automodel_cli.corpus.formats.journal import PROGRESS_NAME
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, CorpusFile, CorpusManifest, Plan, Split, describe_file
from automodel_cli.corpus.tokenizers.base import SAVED_FILES
from automodel_cli.errors import DataError
from automodel_cli.files import ANY_TEMPORARY

_FIXED = "|".join(map(re.escape, (ORDER_NAME, MANIFEST_NAME, PROGRESS_NAME)))
_NAMES = re.compile(rf"((train|val)_\w+\.(bin|bos\.idx|mask)|{_FIXED}){ANY_TEMPORARY}")


class ConversationOutput(TokenOutput[CorpusManifest]):
    """A folder of its own: ``train_TASK.bin``, ``val_TASK.bin``, ``train.order``, ``tokenizer/``, ``manifest.json``."""

    manifest_type, what, which = CorpusManifest, "token files", "run"

    def known_names(self) -> re.Pattern[str]:
        return _NAMES

    def path(self, split: Split, task: str) -> Path:
        """Of a task's tokens."""
        return self.folder / f"{split}_{task}.bin"

    def state_is_on_disk(self, plan: Plan, state: dict[str, Any]) -> bool:
        try:
            return all(len(ConversationFile.open(self.folder / name)) == rows for name, rows in state.items())
        except (DataError, TypeError):
            return False

    def publish_manifest(self, files: Mapping[Path, Split], plan: Plan, *, examples: int, bad_rows: int) -> None:
        """Hash every file and write the manifest; from then on the folder is complete."""
        listed = [one for path, split in files.items() for one in self._describe(path, split)]
        listed.append(describe_file(self.folder, ORDER_NAME, "order", "train", documents=examples))
        for path in sorted(self.tokenizer_folder.iterdir()):
            if path.name in SAVED_FILES:
                listed.append(describe_file(self.folder, f"{self.tokenizer_folder.name}/{path.name}", "tokenizer"))
        tokens = [file for file in listed if file.role == "tokens"]
        CorpusManifest(
            folder=self.folder,
            layout="bin",
            dtype=self.tokenizer.dtype.name,  # type: ignore[arg-type]
            eot="none",
            documents=sum(file.documents for file in tokens),
            tokens=sum(file.tokens for file in tokens),
            bad_rows=bad_rows,
            files=tuple(listed),
            versions={"automodel": __version__},
            **plan,
        ).write()
        self.tidy()

    def _describe(self, path: Path, split: Split) -> Iterable[CorpusFile]:
        opened = ConversationFile.open(path)
        rows: dict[str, Any] = {"documents": len(opened)}
        yield describe_file(self.folder, path.name, "tokens", split, tokens=opened.file.num_tokens, **rows)
        yield describe_file(self.folder, bos_index_path(path).name, "bos_index", split, **rows)
        learned = int(opened.learned().sum())
        yield describe_file(self.folder, mask_path(path).name, "mask", split, tokens=learned, **rows)
