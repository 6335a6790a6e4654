"""The sections of a Megatron index, ``PREFIX.idx`` (``megatron_bin`` has its layout).

Shapes: sequences and documents are counted from 0; arrays are one-dimensional, with an entry a sequence or document.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from automodel_cli.corpus.formats.megatron_bin import HEADER_BYTES, REMAKE, MegatronFile, idx_path
from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.errors import DataError

_AT_ONCE = 1 << 20  # sequences checked at a time
_SMALL_INDEX_BYTES = 1 << 20  # smaller indices are read, larger ones mapped
_FEW = 6  # sequences that are looked up one by one
_POINTER, _LENGTH = struct.Struct("<q"), struct.Struct("<i")


class MegatronIndex:
    """The sections of one ``.idx``. Random access to sequences; whole sections as arrays of their own.

    A large index is mapped (which keeps a file descriptor), a small one read.
    """

    def __init__(self, file: MegatronFile) -> None:
        self.file = file
        path = idx_path(file.prefix)
        whole = file.documents_offset + 8 * (file.num_documents + 1)
        self.watched = WatchedFile(path, whole)  # ask it before a large index is looked at
        raw = self.watched.map() if whole > _SMALL_INDEX_BYTES else self.watched.read()
        # Rows of bytes: the numbers are not aligned, and numpy copies a whole unaligned array to take from it.
        self._lengths = self._rows(raw, file.lengths_offset, file.num_sequences, 4)
        self._pointers = self._rows(raw, file.pointers_offset, file.num_sequences, 8)
        self._documents = self._rows(raw, file.documents_offset, file.num_documents + 1, 8)
        self._raw = raw.data

    @staticmethod
    def _rows(raw: np.ndarray, offset: int, count: int, width: int) -> np.ndarray:
        return raw[offset : offset + count * width].reshape(count, width)

    def lengths(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Lengths of sequences ``begin`` to ``end`` in tokens, int32, a copy."""
        return self._lengths[begin:end].copy().view("<i4").ravel()

    def document_bounds(self) -> np.ndarray:
        """The document index, int64 ``[documents + 1]``, a copy."""
        return self._documents.copy().view("<i8").ravel()

    def locate(self, sequences: np.ndarray) -> tuple[list[int], list[int]]:
        """(first tokens in ``.bin``, lengths) of ``sequences``."""
        itemsize = self.file.dtype.itemsize
        if len(sequences) <= _FEW:  # whole arrays cost more to set up
            numbers, first = sequences.tolist(), self.file.pointers_offset
            starts = [_POINTER.unpack_from(self._raw, first + 8 * n)[0] // itemsize for n in numbers]
            return starts, [_LENGTH.unpack_from(self._raw, HEADER_BYTES + 4 * n)[0] for n in numbers]
        pointers = self._pointers.take(sequences, axis=0).view("<i8").ravel()
        lengths = self._lengths.take(sequences, axis=0).view("<i4").ravel()
        return (pointers // itemsize).tolist(), lengths.tolist()

    def documents_between(self, first: int, end: int) -> list[tuple[int, int]]:
        """(number, first token in ``.bin``) of the documents that tokens ``first`` to ``end`` are of; a few reads."""

        def pointer(sequence: int) -> int:
            past_the_last = sequence == self.file.num_sequences
            return self.file.tokens.num_tokens if past_the_last else self.locate(np.array([sequence]))[0][0]

        def bound(document: int) -> int:
            return int(self._documents[document].view("<i8")[0])

        bounds = range(self.file.num_documents + 1)
        begin, last = (bisect_right(bounds, at, key=lambda n: pointer(bound(n))) - 1 for at in (first, end - 1))
        found = [(number, pointer(bound(number))) for number in range(max(begin, 0), last + 1)]
        after = [start for _, start in found[1:]] + [end]
        return [one for one, following in zip(found, after, strict=True) if one[1] < following]

    def check(self) -> None:
        """Check every length, pointer and document boundary; a second for some 100M sequences.

        Raises:
            DataError: naming the first that is wrong.
        """
        name, expected = idx_path(self.file.prefix), 0
        for first, lengths, pointers in self._runs():
            begins = np.cumsum(lengths, dtype=np.int64)
            begins *= self.file.dtype.itemsize
            ends, begins = begins + expected, np.concatenate(([0], begins[:-1])) + expected
            wrong = np.flatnonzero((lengths < 0) | (pointers != begins))
            if len(wrong):
                at = int(wrong[0])
                raise DataError(
                    f"{name}: sequence {first + at:,} has length {lengths[at]:,} and begins at byte "
                    f"{pointers[at]:,}, expected {begins[at]:,}",
                    f"the index is damaged; {REMAKE}",
                )
            expected = int(ends[-1])
        self._check_documents()

    def _runs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for first in range(0, self.file.num_sequences, _AT_ONCE):
            pointers = self._pointers[first : first + _AT_ONCE].copy().view("<i8").ravel()
            yield first, self.lengths(first, first + _AT_ONCE), pointers

    def _check_documents(self) -> None:
        bounds = self.document_bounds()
        back = np.flatnonzero(np.diff(bounds) < 0)
        if len(back):
            at = int(back[0])
            raise DataError(
                f"{idx_path(self.file.prefix)}: document {at:,} ends at sequence {bounds[at + 1]:,}, "
                f"before its beginning at {bounds[at]:,}",
                f"the index is damaged; {REMAKE}",
            )
