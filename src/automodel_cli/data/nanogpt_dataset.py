"""``NanogptDataset``: token files as numbered windows of ``seq_len + 1`` tokens.

- A window is ``seq_len + 1`` tokens of one shard; the next starts ``seq_len`` later, so every token but a
  shard's first is a label once. The tail of a shard, shorter than a window, is left out.
- Sample ``k`` is epoch ``k // W``, slot ``k % W``. Slots are windows in file order, or permuted anew in each
  epoch (``shuffle_files``).
- Who reads what is not decided here: the data set knows no ranks and no workers (``sampler`` does).
- Cost: file headers at start; a shard is mapped when it is first read; a batch is copied once, from the
  mapping into the caller's buffer.

Shapes: B rows, T = ``seq_len`` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from automodel_cli.batch import Batch
from automodel_cli.corpus.manifest import CorpusManifest
from automodel_cli.data.document_starts import Eot, aligned_starts, document_starts
from automodel_cli.data.open_files import TokenShards
from automodel_cli.data.permutation import ALGORITHM, Permutation
from automodel_cli.data.position import plan_hash
from automodel_cli.data.row_documents import positions, segments
from automodel_cli.data.token_files import TokenFiles, open_token_files
from automodel_cli.data.vocabulary import sampled_maxima
from automodel_cli.errors import ConfigError, DataError


class NanogptDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows over nanoGPT-style token files: both header kinds and headerless, uint16 or uint32.

    Args:
        file_pattern: a glob (sorted), a file, a corpus folder, or a list of them. A corpus' first shard means
            all of its shards.
        seq_len: tokens a window is trained on, T.
        shuffle_files: permute all windows, anew each epoch. (The name is the one that configurations have.)
        align_to_bos: windows begin where documents begin.
        intra_document: attention does not leave a token's own document, and positions count from its beginning
            (from the row's, where the document began before).
        bos_token: the id between documents; from the manifest where there is one.
        seed: of the shuffle.
        mmap: false for file systems that cannot map files; auto finds out.
        raw_dtype: uint16 or uint32 for files without a header and without a manifest.
        drop_last, infinite: keys of old configurations. Tails are always dropped and
            ``step_scheduler.num_epochs`` says how often the data is read; other wishes are answered in
            ``notes``.

    Raises:
        ConfigError: arguments that contradict each other.
        DataError: files that are missing, damaged, empty, too short or of two splits.
    """

    def __init__(
        self,
        file_pattern: str | Path | Sequence[str | Path],
        seq_len: int,
        *,
        shuffle_files: bool = False,
        align_to_bos: bool = False,
        intra_document: bool = False,
        bos_token: int | None = None,
        seed: int = 0,
        mmap: bool | Literal["auto"] = "auto",
        raw_dtype: str | None = None,
        drop_last: bool | None = None,
        infinite: bool | None = None,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"dataset.seq_len is {seq_len}", "it counts tokens: give 1 or more")
        self._source: TokenFiles = open_token_files(file_pattern, raw_dtype=raw_dtype)
        self._shards = TokenShards(self._source.files, mmap)
        self.seq_len = seq_len
        self.shuffle = shuffle_files
        self.align_to_bos = align_to_bos
        self.seed = seed
        self.notes: list[str] = [*self._source.notes, *_notes_on_old_keys(drop_last, infinite)]
        self.bos_token = bos_token
        self.labelled = intra_document  # see ``windows.LabelledWindows``
        self._separated = self._separation() if intra_document else None
        self._starts: np.ndarray | None = None  # of all windows, when they are not a plain stride
        counts = self._aligned_windows() if align_to_bos else self._plain_windows()
        self._first_window = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._note_short_shards(counts)
        self._permutation = Permutation(len(self), seed=seed, purpose="windows") if shuffle_files else None

    # -------------------------------------------------------------------------------------- what it is

    @property
    def token_dtype(self) -> np.dtype:
        """The widest type that tokens are stored in."""
        return max((file.dtype for file in self._source.files), key=lambda dtype: dtype.itemsize)

    @property
    def token_files(self) -> list[Path]:
        """The shards in reading order."""
        return [file.path for file in self._source.files]

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards, tails included."""
        return self._source.num_tokens

    @property
    def documents(self) -> int | None:
        """Documents in all shards, where a manifest counts them."""
        return self._source.documents

    @property
    def manifest(self) -> CorpusManifest | None:
        """The manifest that lists all the shards, if there is one."""
        return self._source.manifest

    @property
    def split(self) -> str | None:
        """ "train" or "val", where a manifest says so."""
        return self._source.split

    @property
    def fingerprint(self) -> str:
        """Identity of the data; the same wherever the files lie."""
        return self._source.fingerprint

    def plan(self) -> dict[str, Any]:
        """All that decides which tokens sample ``k`` holds, as JSON values."""
        return {
            "kind": "nanogpt",
            "data": self.fingerprint,
            "tokens": self.num_tokens,
            "windows": len(self),
            "seq_len": self.seq_len,
            "bos_token": self.bos_token if self.align_to_bos or self.labelled else None,
            "align_to_bos": self.align_to_bos,
            **({"intra_document": True} if self.labelled else {}),
            "order": ALGORITHM if self.shuffle else "file",
            "seed": self.seed if self.shuffle else None,
        }

    @property
    def plan_hash(self) -> str:
        """Hash of ``plan()``."""
        return plan_hash(self.plan())

    def __len__(self) -> int:
        """Windows in one epoch, W."""
        return int(self._first_window[-1])

    # ---------------------------------------------------------------------------------------- reading

    def locate(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, 2]`` of (shard, first token), for ``gather``.

        Ask for thousands at a time: a call costs some 100 us, an element 0.1 us.
        """
        numbers = np.asarray(sample_numbers, dtype=np.int64).ravel()
        epochs, slots = np.divmod(numbers, len(self))
        return self.locate_windows(slots if self._permutation is None else self._permutation(slots, epochs))

    def locate_windows(self, windows: np.ndarray) -> np.ndarray:
        """Where the windows numbered in file order lie: int64 ``[N, 2]`` of (shard, first token)."""
        shards = np.searchsorted(self._first_window, windows, side="right") - 1
        if self._starts is not None:
            starts = self._starts[windows]
        else:
            starts = (windows - self._first_window[shards]) * self.seq_len
        return np.stack([shards, starts], axis=1)

    def gather(self, places: np.ndarray, out: np.ndarray) -> None:
        """Copy the windows at ``places`` (int64 ``[B, 2]``) into ``out`` (int64 ``[B, T + 1]``).

        Rows that follow each other in one shard, as in file order, are one strided copy.
        """
        shards, starts = places[:, 0].tolist(), places[:, 1].tolist()
        rows, stride = len(starts), self.seq_len
        if rows > 1 and shards[0] == shards[-1] and starts[-1] - starts[0] == (rows - 1) * stride:
            tokens = self._shards.tokens(shards[0])
            if tokens is not None and bool((np.diff(places[:, 1]) == stride).all()):
                out[:] = _rows_of(tokens, starts[0], rows, stride)
                return
        for shard, start, row in zip(shards, starts, out, strict=True):
            tokens = self._shards.tokens(shard)
            if tokens is not None:
                row[:] = tokens[start : start + stride + 1]
            else:
                self._shards.reader(shard).read_into(start, row)

    def make_batch(self, rows: np.ndarray) -> Batch:
        """A batch of gathered rows (int64 ``[B, T + 1]``, copied) in which documents are kept apart."""
        assert self._separated is not None
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

    def fill(self, sample_numbers: np.ndarray, out: np.ndarray) -> None:
        """Copy samples into ``out``, int64 ``[B, T + 1]``: inputs ``out[:, :-1]``, labels ``out[:, 1:]``."""
        self.gather(self.locate(sample_numbers), out)

    def __getitem__(self, sample_number: int) -> dict[str, torch.Tensor]:
        """One sample's ``input_ids`` and ``labels``, int64 ``[T]``; numbers from W on are later epochs.

        With ``intra_document`` also ``position_ids`` and ``segment_ids``.
        """
        if sample_number < 0:
            raise IndexError(f"sample number {sample_number}: they count from 0")
        out = np.empty((1, self.seq_len + 1), dtype=np.int64)
        self.fill(np.array([sample_number]), out)
        if self.labelled:
            return {name: rows[0] for name, rows in vars(self.make_batch(out)).items()}
        window = torch.from_numpy(out[0])
        return {"input_ids": window[:-1], "labels": window[1:]}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The first epoch."""
        return (self[number] for number in range(len(self)))

    # ----------------------------------------------------------------------------------------- checks

    def max_token_id(self) -> int:
        """The largest id in a sample of the tokens, spread over all shards (all of a small file)."""
        return max(self._sampled_maxima().values())

    def check_vocab(self, vocab_size: int) -> None:
        """Check that a model of ``vocab_size`` ids can embed this data.

        Raises:
            DataError: the manifest's tokenizer has more ids, or a sampled token is beyond.
        """
        hint = f"set model.vocab_size to at least {{}}, or use data tokenised for {vocab_size:,} ids"
        if self.manifest is not None:
            tokenizer = self.manifest.tokenizer
            if tokenizer["vocab_size"] > vocab_size:
                raise DataError(
                    f"the data was tokenised with {tokenizer['name']} ({tokenizer['vocab_size']:,} ids), "
                    f"the model has {vocab_size:,}",
                    hint.format(tokenizer["vocab_size"]),
                )
        for shard, largest in self._sampled_maxima().items():
            if largest >= vocab_size:
                path = self._source.files[shard].path
                raise DataError(
                    f"{path} holds token id {largest:,}, the model has {vocab_size:,} ids",
                    hint.format(largest + 1) + " (a raw uint32 file needs raw_dtype: uint32)",
                )

    def _sampled_maxima(self) -> dict[int, int]:
        return sampled_maxima([(0, file.num_tokens) for file in self._source.files], self._shards.reader)

    # ------------------------------------------------------------------------------------------ start

    def _plain_windows(self) -> list[int]:
        """Windows in each shard: ``n`` windows need ``n * seq_len + 1`` tokens."""
        return [(file.num_tokens - 1) // self.seq_len for file in self._source.files]

    def _aligned_windows(self) -> list[int]:
        """Windows in each shard when they begin at documents; fills ``_starts``."""
        eot = self._eot()
        separator = self._separator(eot)
        starts = []
        for number, file in enumerate(self._source.files):
            documents = document_starts(self._shards.reader(number), separator, eot)
            starts.append(aligned_starts(documents, self.seq_len, file.num_tokens))
        self._starts = np.concatenate(starts)
        if not len(self._starts) and all(file.num_tokens > self.seq_len for file in self._source.files):
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
                "tokenise with --eot prepend, or name the token: bos_token",
            )
        return self._separator(eot, "intra_document"), eot

    def _eot(self) -> Eot:
        """On which side of a document its separator stands: as the manifest says, else as its tools do."""
        if self.manifest is not None:
            wanted = self.manifest.eot == "none" and self.bos_token is not None
            return "prepend" if wanted else self.manifest.eot
        return "append" if self._source.files[0].layout == "raw" else "prepend"

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
        short = [file for file, count in zip(self._source.files, counts, strict=True) if count == 0]
        if len(short) == len(counts):
            longest = max(self._source.files, key=lambda file: file.num_tokens)
            raise DataError(
                f"no window of {self.seq_len} + 1 tokens fits: "
                f"{longest.path} holds {longest.num_tokens:,} tokens",
                f"lower dataset.seq_len below {longest.num_tokens}, or make a larger token file",
            )
        if short:
            tokens = sum(file.num_tokens for file in short)
            self.notes.append(
                f"{len(short)} shard(s) without a window of {self.seq_len} + 1 tokens are left out: "
                f"{tokens:,} tokens in all (first: {short[0].path.name})"
            )


def _rows_of(tokens: np.ndarray, start: int, rows: int, stride: int) -> np.ndarray:
    """``[rows, stride + 1]`` windows from ``start`` on as one view; neighbours share a token."""
    step = tokens.itemsize
    return np.ndarray(
        (rows, stride + 1), tokens.dtype, buffer=tokens, offset=start * step, strides=(stride * step, step)
    )


def _notes_on_old_keys(drop_last: bool | None, infinite: bool | None) -> list[str]:
    notes = []
    if drop_last is False:
        notes.append("dataset.drop_last: false has no effect: the tail of a shard is shorter than a window")
    if infinite:
        notes.append(
            "dataset.infinite has no effect: step_scheduler.num_epochs and max_steps say how long to train"
        )
    return notes
