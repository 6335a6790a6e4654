"""Files of conversations: token files with a mask beside each, and the order in which a mixture is trained on.

| file               | bytes                                                                                      |
|--------------------|--------------------------------------------------------------------------------------------|
| SPLIT_TASK.bin     | tokens, as ``nanogpt_bin`` has them (with header); conversations follow each other         |
| SPLIT_TASK.bos.idx | first token of each conversation, int32                                                    |
| SPLIT_TASK.mask    | one byte a token: 1 where it is learned, else 0                                            |
| train.order        | int64, one for each example of the mixture: the number of a conversation, counted through  |
|                    | the training files in the order of the manifest                                            |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automodel_cli.corpus.formats.bos_index import read_bos_index
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.manifest import CorpusManifest
from automodel_cli.corpus.formats.nanogpt_bin import TokenFile, inspect_token_file
from automodel_cli.corpus.formats.nanogpt_writer import ShardInfo, ShardWriter
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file, disk_errors_named, read_range

ORDER_NAME = "train.order"
_AGAIN = "make the files again with automodel preprocess chat"


def mask_path(bin_path: Path | str) -> Path:
    """``a/train_gsm8k.bin`` -> ``a/train_gsm8k.mask``."""
    return Path(bin_path).with_suffix(".mask")


class ConversationWriter:
    """Writes one token file, its index and its mask; the token file appears last."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._tokens = ShardWriter(path, dtype=dtype)
        with disk_errors_named(mask_path(path)):
            self._mask = GrowingFile(mask_path(path))
        self.dtype = self._tokens.dtype

    def write(self, tokens: np.ndarray, mask: np.ndarray, lengths: np.ndarray) -> None:
        """Append conversations of these lengths.

        Raises:
            DataError: the file would pass what its index can count.
            AutomodelError: the disk is full.
        """
        if len(tokens) > self._tokens.room:
            raise DataError(
                f"{self._tokens.path} would pass 2^31 tokens", "divide the task into several, or set max_examples"
            )
        self._tokens.write(tokens.astype(self.dtype, copy=False), np.cumsum(lengths) - lengths)
        with disk_errors_named(self._mask.target):
            self._mask.handle.write(mask.astype(np.uint8, copy=False).data)

    def close(self) -> ShardInfo:
        """Publish the three.

        Raises:
            AutomodelError: the disk is full.
        """
        with disk_errors_named(self._mask.target):
            self._mask.publish()
        return self._tokens.close()

    def abandon(self) -> None:
        """After an error: nothing stays."""
        self._mask.abandon()
        self._tokens.abandon()


@dataclass(frozen=True)
class ConversationFile:
    """An open file of conversations."""

    file: TokenFile
    starts: np.ndarray  # int64, one more for the end

    @classmethod
    def open(cls, path: Path) -> ConversationFile:
        """The file at ``path`` with what lies beside it.

        Raises:
            DataError: its index or mask is missing, or of another length.
        """
        file = inspect_token_file(path)
        index, mask = read_bos_index(path, file.num_tokens), mask_path(path)
        if index is None or not mask.is_file():
            raise DataError(f"{path} has no {'mask' if index is not None else 'index'} beside it", _AGAIN)
        if mask.stat().st_size != file.num_tokens or (file.num_tokens and (not len(index) or index[0] != 0)):
            raise DataError(f"{mask} and {path} do not belong together", _AGAIN)
        return cls(file, np.append(index.astype(np.int64), file.num_tokens))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64."""
        return np.diff(self.starts)

    @functools.cached_property
    def _reader(self) -> TokenReader:
        return TokenReader(self.file)

    def __reduce__(self) -> tuple[object, ...]:
        return ConversationFile, (self.file, self.starts)

    def read(self, number: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int64) and mask (bool) of a conversation, of its first ``most`` tokens."""
        begin, end = self.starts[number : number + 2].tolist()
        count = end - begin if most is None else min(most, end - begin)
        ids = np.empty(count, dtype=np.int64)
        self._reader.read_into(begin, ids)
        return ids, np.frombuffer(read_range(mask_path(self.file.path), begin, count), dtype=np.uint8) != 0

    def learned(self) -> np.ndarray:
        """Learned tokens of each conversation, int64."""
        mask = np.fromfile(mask_path(self.file.path), dtype=np.uint8)
        return np.add.reduceat(mask, self.starts[:-1], dtype=np.int64) if len(self) else np.empty(0, np.int64)


def write_order(folder: Path, order: np.ndarray) -> None:
    """Publish the order of a mixture."""
    with atomic_file(folder / ORDER_NAME) as handle:
        handle.write(order.astype("<i8").tobytes())


def read_order(folder: Path, conversations: int) -> np.ndarray:
    """The order of the mixture in ``folder``, whose training files hold so many conversations; int64.

    Raises:
        DataError: it is missing, or names conversations that are not there.
    """
    path = folder / ORDER_NAME
    size = path.stat().st_size if path.is_file() else 0
    if not size or size % 8:
        raise DataError(f"{path} is missing or damaged", _AGAIN)
    order = np.fromfile(path, dtype="<i8").astype(np.int64, copy=False)
    if not (order.min() >= 0 and order.max() < conversations):
        raise DataError(f"{path} names conversations beyond the {conversations:,} that are there", _AGAIN)
    return order


@dataclass(frozen=True)
class TaskCount:
    """What one task gives to a split; of the mixture, as often as its examples come."""

    split: str
    task: str
    examples: int
    tokens: int
    learned: int


def count_by_task(manifest: CorpusManifest) -> list[TaskCount]:
    """Examples, tokens and learned tokens of each task and split."""
    counts = []
    for split in ("train", "val"):
        files = manifest.token_files(split)  # type: ignore[arg-type]
        opened = [ConversationFile.open(manifest.path(file)) for file in files]
        rows = sum(map(len, opened))
        order = read_order(manifest.folder, rows) if split == "train" else np.arange(rows)
        times, first = np.bincount(order, minlength=rows), 0
        for file, one in zip(files, opened, strict=True):
            read = times[first : first + len(one)]
            first += len(one)
            task = file.name.removeprefix(f"{split}_").removesuffix(".bin")
            sums = (int(read.sum()), int(read @ one.lengths), int(read @ one.learned()))
            counts.append(TaskCount(split, task, *sums))
    return counts
