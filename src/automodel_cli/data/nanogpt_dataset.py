"""``NanogptDataset``: token files as numbered windows of ``seq_len + 1`` tokens.

A window starts ``seq_len`` after the one before, so every token but a shard's first is a label once; the tail of a
shard, shorter than a window, is left out. Sample ``k`` is epoch ``k // W``, slot ``k % W``: windows in file order, or
permuted anew in each epoch (``shuffle_files``). Ranks and workers are not known here (``sampler``). Headers are read at
start, a shard is mapped when it is first read, and a batch is copied once, from the mapping into the caller's buffer.

Shapes: B rows, T = ``seq_len`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import Batch
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, CorpusManifest, read_corpus_manifest
from automodel_cli.data.arguments import NanogptArguments
from automodel_cli.data.files.documents import (
    Document,
    Eot,
    aligned_starts,
    document_starts,
    documents_between,
    fetch_indices,
    positions,
    segments,
    trusted_index,
)
from automodel_cli.data.files.file_windows import FileWindows
from automodel_cli.data.files.token_files import TokenFiles, open_token_files
from automodel_cli.data.fim import open_fim
from automodel_cli.data.interface import TokenRange
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.storage.cache.local_view import LocalView


class NanogptDataset(FileWindows):
    """Windows over nanoGPT-style token files: all header kinds and headerless, uint16 or uint32.

    Arguments: ``NanogptArguments``.

    Raises:
        ConfigError: arguments that contradict each other.
        DataError: files that are missing, damaged, empty, too short or of two splits.
    """

    @constructor_takes(NanogptArguments)
    def __init__(self, options: NanogptArguments) -> None:
        if options.seq_len < 1:
            raise ConfigError(f"dataset.seq_len is {options.seq_len}", "it counts tokens: give 1 or more")
        self._source: TokenFiles = open_token_files(options.file_pattern, raw_dtype=options.raw_dtype)
        super().__init__(self._source.files, options.mmap)
        self.seq_len = options.seq_len
        self.shuffle = options.shuffle_files
        self.align_to_bos = options.align_to_bos
        self.seed = options.seed
        self.notes: list[str] = list(self._source.notes)
        if options.drop_last is False:
            self.notes.append("dataset.drop_last: false has no effect: the tail of a shard is shorter than a window")
        if options.infinite:
            self.notes.append(
                "dataset.infinite has no effect: step_scheduler.num_epochs and max_steps say how long to train"
            )
        self.bos_token = options.bos_token
        self._separated = self._separation() if options.intra_document else None
        self.fim = open_fim(
            options.fim, "dataset.fim", manifest=self.manifest, separator=self.bos_token, seed=options.seed
        )
        self._fims = [self.fim] * len(self._files)
        self._indices: dict[int, np.ndarray | None] = {}  # first tokens of the documents of shards that were asked for
        self._starts: np.ndarray | None = None  # of all windows, when they are not a plain stride
        if options.align_to_bos:
            counts = self._aligned_windows()
        else:  # n windows need n * seq_len + 1 tokens
            counts = [(file.num_tokens - 1) // self.seq_len for file in self._files]
        self._first_window = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._note_short_shards(counts)
        self._permutation = (
            Permutation(len(self), seed=options.seed, purpose="windows") if options.shuffle_files else None
        )

    @classmethod
    def open_named(
        cls, name: str, seq_len: int, *, held_out: bool = True, trained_as: Mapping[str, Any]
    ) -> NanogptDataset:
        """Any token files; of a corpus folder with ``held_out`` its validation split, where it has one."""
        view = LocalView()
        folder = Path(view.place(name))
        if held_out and (folder / MANIFEST_NAME).is_file():
            manifest = read_corpus_manifest(folder)
            files = manifest.token_files("val")
            name = view.name(manifest.path(files[0])) if files else name
        return cls(name, seq_len, **trained_as)

    def token_ranges(self) -> list[TokenRange]:
        """All of every shard, tails included."""
        return [(file.path, 0, file.num_tokens) for file in self._files]

    @property
    def manifest(self) -> CorpusManifest | None:
        """The manifest that lists all the shards, if there is one."""
        return self._source.manifest

    @property
    def named_split(self) -> str | None:
        """ "train" or "val", where a manifest says so."""
        return self._source.split

    @property
    def fingerprint(self) -> str:
        """As ``WindowDataset`` has it."""
        return self._source.fingerprint

    def plan(self) -> dict[str, Any]:
        """As ``WindowDataset`` has it."""
        return {
            "kind": "nanogpt",
            "data": self.fingerprint,
            "tokens": self.num_tokens,
            "windows": len(self),
            "seq_len": self.seq_len,
            "bos_token": self.bos_token if self.align_to_bos or self.labelled else None,
            "align_to_bos": self.align_to_bos,
            **({"intra_document": True} if self.labelled else {}),
            **({} if self.fim is None else {"fim": self.fim.plan()}),
            "order": ALGORITHM if self.shuffle else "file",
            "seed": self.seed if self.shuffle else None,
        }

    def __len__(self) -> int:
        """Windows in one epoch, W."""
        return int(self._first_window[-1])

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, 2]`` of (shard, first token), with ``fim`` also their numbers.

        Ask for thousands at a time: a call costs some 100 us, an element 0.1 us.
        """
        numbers = np.asarray(sample_numbers, dtype=np.int64).ravel()
        epochs, slots = np.divmod(numbers, len(self))
        found = self.window_offsets(slots if self._permutation is None else self._permutation(slots, epochs))
        return found if self.fim is None else np.column_stack([found, numbers])

    def window_offsets(self, windows: np.ndarray) -> np.ndarray:
        """Where the windows numbered in file order lie: int64 ``[N, 2]`` of (shard, first token)."""
        shards = np.searchsorted(self._first_window, windows, side="right") - 1
        if self._starts is not None:
            starts = self._starts[windows]
        else:
            starts = (windows - self._first_window[shards]) * self.seq_len
        return np.stack([shards, starts], axis=1)

    def documents(self, number: int, first: int, end: int) -> list[Document]:
        """As ``TokenFileDataset`` has it: by ``.bos.idx``, else by the separator, where it is known."""
        eot, reader = self._eot(), self._shards.reader(number)
        separator = self.manifest.separator_id if self.manifest is not None else self.bos_token
        if number not in self._indices:
            self._indices[number] = trusted_index(reader, separator, eot)
        return documents_between(reader, separator, eot, self._indices[number], first, end)

    @property
    def label_rule(self) -> Any:
        """The id between documents and on which side of one it stands, where documents are kept apart."""
        return self._separated

    def make_batch(self, rows: np.ndarray) -> Batch:
        """As ``WindowDataset`` has it; with ``intra_document`` of a copy, with positions and segments."""
        if self._separated is None:
            return super().make_batch(rows)
        separator, eot = self._separated
        begins = rows[:, :-1] == separator
        if eot == "append":  # a document begins behind the separator
            begins = np.roll(begins, 1, axis=1)
            begins[:, 0] = False
        tokens = torch.from_numpy(rows.copy())
        return Batch(
            tokens[:, :-1],
            tokens[:, 1:],
            position_ids=torch.from_numpy(positions(begins)),
            segment_ids=torch.from_numpy(segments(begins)),
        )

    def _aligned_windows(self) -> list[int]:
        """Windows in each shard when they begin at documents; fills ``_starts``."""
        eot = self._eot()
        separator = self._separator(eot)
        starts = []
        fetch_indices(self._files)
        for number, file in enumerate(self._files):
            documents = document_starts(self._shards.reader(number), separator, eot)
            starts.append(aligned_starts(documents, self.seq_len, file.num_tokens))
        self._starts = np.concatenate(starts)
        if not len(self._starts) and all(file.num_tokens > self.seq_len for file in self._files):
            raise DataError(
                f"align_to_bos finds no window that starts at token {separator}",
                "check dataset.bos_token, or train with align_to_bos: false",
            )
        return [len(found) for found in starts]

    def _separation(self) -> tuple[int, Eot]:
        """The id between documents, and on which side of one it stands.

        Raises:
            ConfigError: the data has none.
        """
        eot = self._eot()
        if eot == "none":
            raise ConfigError(
                "intra_document: these token files have no token between documents",
                "tokenize with --eot prepend, or name the token: bos_token",
            )
        return self._separator(eot, "intra_document"), eot

    def _eot(self) -> Eot:
        """On which side of a document its separator stands: as the manifest says, else as its tools do."""
        if self.manifest is not None:
            wanted = self.manifest.eot == "none" and self.bos_token is not None
            return "prepend" if wanted else self.manifest.eot
        return "append" if self._files[0].layout in ("raw", "npy") else "prepend"

    def _separator(self, eot: Eot, what: str = "align_to_bos") -> int:
        """The id between documents, which ``what`` needs; sets ``bos_token`` from the manifest when none was given."""
        if eot == "none":
            return -1
        separator = None if self.manifest is None else self.manifest.separator_id
        self.bos_token = separator if self.bos_token is None else self.bos_token
        if separator is not None and self.bos_token != separator:
            raise ConfigError(
                f"dataset.bos_token is {self.bos_token}, but the manifest says that token {separator} "
                f"({self.manifest.separator if self.manifest else ''}) separates documents",
                f"leave bos_token out or give {separator}; preprocess nanogpt --separator bos|eos chooses the token",
            )
        if self.bos_token is None:
            raise ConfigError(
                f"{what} needs dataset.bos_token: no manifest.json says which token separates documents",
                "give the id, for example bos_token: 50256 for GPT-2",
            )
        return self.bos_token

    def _note_short_shards(self, counts: list[int]) -> None:
        """One window at least in all of the data; a note on shards that give none."""
        short = [file for file, count in zip(self._files, counts, strict=True) if count == 0]
        if len(short) == len(counts):
            longest = max(self._files, key=lambda file: file.num_tokens)
            raise DataError(
                f"no window of {self.seq_len} + 1 tokens fits: {longest.name} holds {longest.num_tokens:,} tokens",
                f"lower dataset.seq_len below {longest.num_tokens}, or make a larger token file",
            )
        if short:
            tokens = sum(file.num_tokens for file in short)
            self.notes.append(
                f"{len(short)} shard(s) without a window of {self.seq_len} + 1 tokens are left out: "
                f"{tokens:,} tokens in all (first: {short[0].path.name})"
            )
