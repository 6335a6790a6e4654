"""``ChatDataset``: conversations of ``preprocess chat`` as rows of different length, labelled where they are learned.

A row is one conversation: ``labels[t]`` is the token after ``input_ids[t]``, or ignored where the mask says so. Rows
are packed (``packed_sequence.packed_sequence_size``) or padded. Sample ``k`` is the same row in every run, so order,
position and resume are those of any map-style data set (``loader``).

Of a folder the training rows come in the order of its mixture; of single files in the order of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.corpus.documents.globbing import expand
from automodel_cli.corpus.formats.conversation_files import ConversationFile, mask_path, read_order
from automodel_cli.corpus.formats.manifest import CorpusManifest, read_corpus_manifest
from automodel_cli.data.arguments import ChatArguments
from automodel_cli.data.files.token_files import open_token_files
from automodel_cli.data.interface import (
    DataSource,
    Description,
    RunValues,
    TokenRange,
    refuse_large_tokenizer,
    refuse_negative,
    vocabulary_hint,
)
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import hash_bytes, hash_file
from automodel_cli.storage.urls import is_remote


class ChatDataset(DataSource, Dataset[dict[str, torch.Tensor]]):
    """Rows of conversations. Arguments: ``ChatArguments``.

    Raises:
        ConfigError: several folders, or no room for a token.
        DataError: no files, files without mask or index, or no conversation that is short enough.
    """

    stage = "mid-training"

    @constructor_takes(ChatArguments)
    def __init__(self, options: ChatArguments) -> None:
        if options.max_tokens is not None and options.max_tokens < 1:
            raise ConfigError(f"dataset.max_tokens is {options.max_tokens}", "give 1 or more, or null for no limit")
        folder = _folder_of(options)
        paths = _files_in(folder, options.split) if folder is not None else options.file_pattern
        named = [paths] if isinstance(paths, str | Path) else list(paths)  # a list: each file stands for itself
        self._found = open_token_files(named)
        self._files = [ConversationFile.open(file.path) for file in self._found.files]
        self._first = np.cumsum([0, *map(len, self._files)])
        mixed = folder is not None and options.split == "train"
        rows = read_order(folder, int(self._first[-1])) if folder and mixed else np.arange(self._first[-1])
        self.max_tokens = options.max_tokens
        self._vocab_size: int | None = None  # of the model, once it is known
        lengths = np.concatenate([file.lengths for file in self._files]) - 1
        self._rows = self._short_enough(rows, lengths, drop=options.long_conversations == "drop")
        read = lengths[self._rows]
        self._num_tokens = int(read.sum() if self.max_tokens is None else np.minimum(read, self.max_tokens).sum())
        self._longest = int(read.max(initial=0))
        self.fingerprint = self._identity(lengths)

    def _short_enough(self, rows: np.ndarray, lengths: np.ndarray, *, drop: bool) -> np.ndarray:
        self.notes = list(self._found.notes)
        if self.max_tokens is None:
            return rows
        long = lengths[rows] > self.max_tokens
        if count := int(long.sum()):
            longer = f"{count:,} of {len(rows):,} conversations have more than {self.max_tokens:,} tokens"
            self.notes.append(f"{longer}: {'left out' if drop else 'cut there'}")
        kept = rows[~long] if drop else rows
        if not len(kept):
            raise DataError(
                f"none of {len(rows):,} conversations has at most {self.max_tokens:,} tokens",
                "raise dataset.max_tokens, or set long_conversations: truncate",
            )
        return kept

    def _identity(self, lengths: np.ndarray) -> str:
        """Of tokens, masks, the order of rows and where each begins and ends."""
        manifest = self._found.manifest
        hashes = {manifest.path(file): file.xxh3 for file in manifest.files} if manifest is not None else {}
        masks = [mask_path(file.path) for file in self._found.files]
        order = hash_bytes(np.concatenate([self._rows, lengths]).astype("<i8").tobytes())
        parts = [self._found.fingerprint, *(hashes.get(mask) or hash_file(mask) for mask in masks), order]
        return hash_bytes("\n".join([*parts, str(self.max_tokens)]).encode())

    @classmethod
    def open_named(
        cls, name: str, seq_len: int, *, held_out: bool = True, trained_as: Mapping[str, Any]
    ) -> ChatDataset | None:
        """The conversations of files that ``name`` means, cut at ``seq_len``; None where files have no mask."""
        path = Path(name).expanduser()
        files = path.glob("*.bin") if path.is_dir() else map(Path, expand(str(path)))
        if not any(mask_path(file).is_file() for file in files):
            return None
        return cls(name, max_tokens=seq_len, split="validation" if held_out else "train")

    @classmethod
    def run_arguments(cls, run: RunValues) -> dict[str, Any]:
        """Of a folder the split that the run wants."""
        return {"split": run.split}

    @property
    def manifest(self) -> CorpusManifest | None:
        """As ``DataSource`` has it."""
        return self._found.manifest

    def describe(self) -> Description:
        """As ``DataSource`` has it; tokens are those of all rows of an epoch."""
        return Description(
            type(self).__name__,
            self._num_tokens,
            len(self._files),
            len(self),
            self.max_tokens,
            self._found.split,
            self.fingerprint,
        )

    def token_ranges(self) -> list[TokenRange]:
        """As ``DataSource`` has it."""
        return [(file.path, 0, file.num_tokens) for file in self._found.files]

    def check_vocab(self, vocab_size: int) -> None:
        """As ``DataSource`` has it; from here on every row is checked."""
        refuse_large_tokenizer(self.manifest, vocab_size)
        self._vocab_size = vocab_size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, sample_number: int) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels`` of one conversation, int64 ``[T]`` each."""
        refuse_negative(sample_number)
        row = int(self._rows[sample_number])
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        most = None if self.max_tokens is None else self.max_tokens + 1
        ids, learned = self._files[number].read(row - int(self._first[number]), most)
        if self._vocab_size is not None and (largest := int(ids.max(initial=0))) >= self._vocab_size:
            path = self._files[number].file.path
            raise DataError(
                f"{path} holds token id {largest:,}, the model has {self._vocab_size:,} ids",
                vocabulary_hint(largest + 1, self._vocab_size),
            )
        labels = np.where(learned[1:], ids[1:], IGNORE_INDEX)
        return {"input_ids": torch.from_numpy(ids[:-1]), "labels": torch.from_numpy(labels)}


def _folder_of(options: ChatArguments) -> Path | None:
    """The folder of ``preprocess chat`` that is meant as a whole.

    Raises:
        ConfigError: a folder among others, whose mixtures are not one.
    """
    named = options.file_pattern
    listed = [named] if isinstance(named, str | Path) else list(named)
    if any(is_remote(str(one)) for one in listed):
        raise ConfigError(
            f"file_pattern is {named}: conversations are not read from object storage",
            "copy the folder to this machine",
        )
    paths = [Path(one).expanduser() for one in listed]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise ConfigError(
            f"file_pattern names {folders[0]} among others, and each folder has a mixture of its own",
            "make one mixture of all tasks with preprocess chat, or name token files: FOLDER/train_TASK.bin",
        )
    return folders[0] if folders else None


def _files_in(folder: Path, split: str) -> list[str | Path]:
    manifest = read_corpus_manifest(folder)
    files = manifest.token_files("val" if split == "validation" else "train")
    if not files:
        raise DataError(
            f"{folder} holds no conversations for {split}",
            "give its tasks val_dataset, val_split or val_fraction, or leave validation out",
        )
    return [manifest.path(file) for file in files]
