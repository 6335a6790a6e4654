"""Windows over token files, whose ids are checked against the model: by a sample before a run, then in every batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import TokenFile
from automodel_cli.data.files.documents import Document
from automodel_cli.data.files.open_files import TokenShards
from automodel_cli.data.interface import WindowDataset, refuse_large_tokenizer, vocabulary_hint
from automodel_cli.errors import DataError

_SAMPLES = 256  # pieces looked at for the largest id ...
_SAMPLE_TOKENS = 8192  # ... of this many tokens: 2M tokens, a few milliseconds
_REMOTE_SAMPLES = 32  # of remote files, where a piece takes a request; every batch is looked at later


class TokenFileDataset(WindowDataset):
    """What data sets of token files share. Subclasses read the files through ``_shards`` and call ``_check_ids``."""

    def __init__(self, files: Sequence[TokenFile], mmap: bool | Literal["auto"]) -> None:
        self._files = files
        self._shards = TokenShards(files, mmap)
        self._vocab_size: int | None = None  # of the model, where an id in the files could be beyond it

    @property
    def maps_files(self) -> bool:
        """Whether files are mapped where that is possible."""
        return self._shards.mmap is not False

    @property
    def files(self) -> Sequence[TokenFile]:
        """The files, as ``token_ranges`` counts them."""
        return self._files

    @property
    def reads_remote(self) -> bool:
        """As ``WindowDataset`` has it."""
        return self._shards.are_remote

    def expect(self, offsets: np.ndarray) -> int:
        """As ``WindowDataset`` has it."""
        return self._shards.expect(stretch for offset in offsets for stretch in self._extents(offset))

    @abstractmethod
    def _extents(self, offset: np.ndarray) -> list[tuple[int, int, int]]:
        """(file, first token, end) of what is read for the row at ``offset`` (int64 ``[K]``), each by a read."""

    @abstractmethod
    def _position(self, offset: np.ndarray, column: int) -> tuple[int, int]:
        """The file, and the token in it, of a column of the row at ``offset`` (int64 ``[K]``)."""

    def documents(self, number: int, first: int, end: int) -> list[Document]:
        """The documents of file ``number`` that its tokens ``first`` to ``end`` are of; empty: nobody knows."""
        return []

    def file_number(self, path: Path) -> int:
        """The number of a file of ``stretches``."""
        return next(number for number, file in enumerate(self._files) if file.path == path)

    def max_token_id(self) -> int:
        """The largest id in a sample of the tokens, spread over all files (all of a small one)."""
        return max(self._sampled_maxima().values())

    def check_vocab(self, vocab_size: int) -> None:
        """Check that a model of ``vocab_size`` ids can embed this data; from here on each batch is checked.

        Raises:
            DataError: the tokenizer that made the files has more ids, a sampled token is beyond, or nothing says how
                wide the ids of a headerless file are.
        """
        refuse_large_tokenizer(self.manifest, vocab_size)
        assumed = [file.name for file in self._files if file.assumed]
        if assumed and vocab_size > 1 << 16:
            raise DataError(
                f"{assumed[0]} has no header, and a model of {vocab_size:,} ids may need uint16 or uint32",
                "say which it holds: dataset.raw_dtype: uint32 (or uint16)",
            )
        for number, largest in self._sampled_maxima().items():
            if largest >= vocab_size:
                file = self._files[number]
                wider = " (a raw uint32 file needs raw_dtype: uint32)" if file.assumed else ""
                raise DataError(
                    f"{file.name} holds token id {largest:,}, the model has {vocab_size:,} ids",
                    vocabulary_hint(largest + 1, vocab_size) + wider,
                )
        dtypes = {file.dtype for file in self._files}
        safe = all(dtype.kind == "u" and np.iinfo(dtype).max < vocab_size for dtype in dtypes)
        self._vocab_size = None if safe else vocab_size

    def _sampled_maxima(self) -> dict[int, int]:
        """Largest sampled id by file: pieces spread evenly over files and tokens, all of them where they are few."""
        ranges = [(number, first, end) for number, (_, first, end) in enumerate(self.token_ranges()) if first < end]
        samples = _REMOTE_SAMPLES if self.reads_remote else _SAMPLES
        spread = np.linspace(0, len(ranges) - 1, min(len(ranges), samples)).astype(np.int64)
        picked: list[int] = np.unique(spread).tolist()
        pieces = samples // max(len(picked), 1)
        sampled = {ranges[at][0]: _spread(*ranges[at][1:], pieces) for at in picked}
        if self.reads_remote:
            self._shards.expect((number, start, end) for number, own in sampled.items() for start, end in own)
        return {number: self._maximum(number, own) for number, own in sampled.items()}

    def _maximum(self, number: int, stretches: list[tuple[int, int]]) -> int:
        reader = self._shards.reader(number)
        return max(int(reader.read(start, end - start).max()) for start, end in stretches)

    def _check_ids(self, largest: int, rows: np.ndarray, offsets: np.ndarray, pad_id: int | None = None) -> None:
        """Refuse ``rows`` read from ``offsets`` where ``largest``, an id in them, has no row in the model.

        Args:
            pad_id: an id that stands for padding, which is replaced later.

        Raises:
            DataError: naming the id, the file and the position.
        """
        vocab_size = self._vocab_size
        if vocab_size is None or largest < vocab_size:
            return
        wrong = rows.view(np.uint64) >= vocab_size  # negative ids are large ones so
        if pad_id is not None:
            wrong &= rows != pad_id
        if not wrong.any():
            return
        row, column = np.argwhere(wrong)[0].tolist()
        file, position = self._position(offsets[row], column)
        name, found = self._files[file].name, int(rows[row, column])
        raise DataError(
            f"{name} holds token id {found:,} at position {position:,}, the model has {vocab_size:,} ids",
            "the file is damaged or of another tokenizer: make or copy it again; `automodel preprocess verify` "
            "reads all of it",
        )


def _spread(first: int, end: int, pieces: int) -> list[tuple[int, int]]:
    """So many pieces of the tokens ``first`` to ``end``, fewer where they would cover all of them."""
    length = min(_SAMPLE_TOKENS, end - first)
    needed = -(-(end - first) // length)
    starts: list[int] = np.linspace(first, end - length, min(pieces, needed)).astype(np.int64).tolist()
    return [(start, start + length) for start in starts]
