"""Where documents begin: in a shard (``align_to_bos``), and in the rows of a batch.

In a shard whose documents are *preceded* by the separator (``prepend``) a document starts at it; where it *follows*
each document (``append``, nanoGPT's raw files), just after it. Positions come from the shard's ``.bos.idx`` if the
tokens bear it out, else from a scan for the separator.

Shapes: B rows, T tokens. ``begins`` is bool ``[B, T]``: whether a document begins at this token. What stands before
the first beginning of a row is the end of an earlier document, and counts as one of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from automodel_cli.corpus.formats.bos_index import bos_index_fits, bos_index_path, read_bos_index
from automodel_cli.corpus.formats.nanogpt_bin import TokenFile
from automodel_cli.corpus.formats.token_reader import TokenReader, iter_blocks
from automodel_cli.errors import DataError
from automodel_cli.storage.cache.local_view import fetch_beside

Eot = Literal["prepend", "append", "none"]
_LOOK_BACK = 1 << 20  # tokens searched for the beginning of a document that began before a stretch
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A document of a token file: its number there, from 0, and its first token; None: not known."""

    number: int | None
    start: int | None


def documents_between(
    reader: TokenReader, separator: int | None, eot: Eot, index: np.ndarray | None, first: int, end: int
) -> list[Document]:
    """The documents that tokens ``first`` to ``end`` of a shard belong to, in order; an empty list: nobody knows.

    Args:
        separator: the id between documents; None: not known, only the index tells.
        index: first tokens of all documents of the shard (``trusted_index``); None: look for the separator.
    """
    if index is not None:
        begun, last = np.searchsorted(index, (first, end - 1), side="right").tolist()
        before = [] if begun else [Document(None, None)]
        return before + [Document(number, int(index[number])) for number in range(max(begun - 1, 0), last)]
    if separator is None or eot == "none":
        return []
    begin = max(first - _LOOK_BACK, 0)
    starts = np.flatnonzero(reader.read(begin, end - begin) == separator) + begin + (eot == "append")
    if begin == 0 and eot == "append":
        starts = np.concatenate([[0], starts])
    inside = starts[(starts > first) & (starts < end)].tolist()
    before_it = starts[starts <= first]
    return [Document(None, start) for start in (before_it[-1:].tolist() or [None]) + inside]


def fetch_indices(files: Sequence[TokenFile]) -> None:
    """Bring the ``.bos.idx`` of remote files here, where they have one.

    Raises:
        AutomodelError: the store does not answer.
    """
    fetch_beside([file.remote for file in files], [bos_index_path(file.path) for file in files])


def trusted_index(reader: TokenReader, separator: int | None, eot: Eot) -> np.ndarray | None:
    """The shard's ``.bos.idx``, where there is one that its tokens bear out."""
    fetch_indices([reader.file])
    try:
        index = read_bos_index(reader.file.path, reader.num_tokens)
    except DataError:
        return None
    if index is None or not len(index):
        return None
    if eot == "none" or separator is None:
        return index
    at = index[index > 0] - 1 if eot == "append" else index
    return index if bos_index_fits(reader, at, separator) else None


def document_starts(reader: TokenReader, separator: int, eot: Eot) -> np.ndarray:
    """First token positions of the documents in one shard (int32 or int64, ascending).

    Args:
        separator: the token id between documents.
        eot: on which side of a document its separator stands; "none" when there are no separators, so that
            only the index knows (without one the shard is one document).
    """
    path = reader.file.path
    try:
        index = read_bos_index(path, reader.num_tokens)
    except DataError as error:
        index = None
        _log.warning("%s; documents are found by scanning for token %d instead", error.message, separator)
    if index is not None:
        # Where the separator follows documents it stands before each start; before position 0 there is nothing.
        at = index[index > 0] - 1 if eot == "append" else index
        if eot == "none" or bos_index_fits(reader, at, separator):
            return index
        _log.warning(
            "%s does not point at token %d (NeMo's own tool writes byte offsets there); "
            "documents are found by scanning instead",
            bos_index_path(path),
            separator,
        )
    return np.zeros(1, np.int32) if eot == "none" else _scan(reader, separator, eot)


def _scan(reader: TokenReader, separator: int, eot: Eot) -> np.ndarray:
    """All document starts of a shard by reading all of it."""
    found: list[np.ndarray] = []
    offset = 0
    for chunk in iter_blocks(reader):
        found.append(np.flatnonzero(chunk == separator) + offset)  # int64: raw files pass 2**31 tokens
        offset += len(chunk)
    positions = np.concatenate(found)
    if eot != "append":
        return positions
    starts = np.concatenate([[0], positions + 1])  # what a shard begins with counts as a document start
    return starts[starts < reader.num_tokens]


def aligned_starts(documents: np.ndarray, seq_len: int, num_tokens: int) -> np.ndarray:
    """Greedy window starts among ``documents`` (ascending), each the first at least ``seq_len`` after the one before.

    The next start of *every* document is found by one vectorized binary search; then only the chain is walked.
    """
    documents = documents[: np.searchsorted(documents, num_tokens - seq_len)]  # the window must fit
    following = np.searchsorted(documents, documents.astype(np.int64) + seq_len).tolist()
    chain, number = [], 0
    while number < len(following):
        chain.append(number)
        number = following[number]
    return documents[np.array(chain, dtype=np.int64)]


def positions(begins: np.ndarray) -> np.ndarray:
    """Positions that count from each beginning (and from the row's), int64 ``[B, T]``."""
    count = np.arange(begins.shape[1], dtype=np.int64)
    return count - np.maximum.accumulate(np.where(begins, count, 0), axis=1)


def segments(begins: np.ndarray) -> np.ndarray:
    """Number of the document within the row, int64 ``[B, T]``."""
    return np.cumsum(begins, axis=1, dtype=np.int64)
