"""Which tokens sample ``k`` of Megatron's GPT data set holds: document, sample and shuffle index, in NumPy.

1. A *split* is a contiguous range of the file's sequences (``parse_split``, ``split_range``).
2. Its sequences, once for each epoch, are shuffled: the document index (``document_index``).
3. Read one after another in that order they are a stream of T tokens. Sample ``j`` holds the S + x tokens from
   ``j * S`` on (x = 1: the last label); row ``j`` of the sample index says where that is: (entry of the document
   index, token in that document) (``sample_index``).
4. The samples are shuffled in turn: the shuffle index (``shuffle_index``).

Values and dtypes are those of megatron-core 0.16.1, which makes 3 in C++. The random numbers are of one legacy
``RandomState`` for each data set, drawn in this order; its streams are frozen over NumPy's versions.

Names: S and x = ``seq_len`` and ``extra_token`` of a ``SampleShape``, D = entries of the document index, n = samples.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automodel_cli.errors import ConfigError, DataError

SPLITS = ("train", "valid", "test")
SplitBounds = tuple[float, float]  # fractions of the sequences
_SEPARATE_BELOW = 0.80  # share of an epoch below which the last one is shuffled by itself
_SLICE = 1 << 20  # rows computed at a time, so that temporaries stay small
_INT32_MAX = 2**31 - 1
_UINT32_MAX = 2**32 - 1


# ------------------------------------------------------------------------------------------- splits


def normalize(weights: Sequence[float]) -> list[float]:
    """``w / sum(w)`` as NumPy adds them up: blends differ in their last bit otherwise, and ties with it."""
    values = np.array(weights, dtype=np.float64)
    return (values / np.sum(values)).tolist()


def parse_split(split: str | Sequence[float]) -> tuple[SplitBounds | None, ...]:
    """``"90,5,5"`` -> where train, valid and test begin and end, as fractions; None for those without a share.

    The ends are added up as Megatron does, so that ``0.9 + 0.05`` is 0.9500000000000001 here too.

    Raises:
        ConfigError: not one to three numbers >= 0, or none above 0.
    """
    if isinstance(split, str):
        found = re.findall(r"-?[.0-9]+(?:[eE][-+]?[0-9]+)?", split)
        try:
            shares = [float(number) for number in found]
        except ValueError:
            shares = []
    else:
        shares = [float(share) for share in split]
    if not 1 <= len(shares) <= len(SPLITS) or any(s < 0 for s in shares) or not 0 < sum(shares) < math.inf:
        raise ConfigError(
            f"split {split!r} is not a share for each of train, validation and test",
            'give up to three numbers, for example "99,1,0"',
        )
    parts = normalize([*shares, *[0.0] * (len(SPLITS) - len(shares))])
    bounds = itertools.pairwise(itertools.accumulate(parts, initial=0))
    return tuple((low, high) if high > low else None for low, high in bounds)


def split_range(bounds: SplitBounds, num_sequences: int) -> tuple[int, int]:
    """First and one past the last sequence of a split (halves round to even)."""
    low, high = bounds
    return round(low * float(num_sequences)), round(high * float(num_sequences))


# ------------------------------------------------------------------------------------------- epochs


@dataclass(frozen=True)
class SampleShape:
    """How a stream of tokens is cut into samples of ``seq_len`` tokens, each with one more as its last label.

    Attributes:
        extra_token: False: without that one more, so that the last label is padding.
        keep_partial: whether a last sample that needs padding counts.
        float32: rounds as megatron-core does when it keeps the partial one, which above 2**24 tokens may lose the tail
            or add an empty sample.
    """

    seq_len: int
    extra_token: bool = True
    keep_partial: bool = False
    float32: bool = False

    def count(self, tokens: int) -> int:
        """Samples in a stream of ``tokens`` tokens."""
        usable = max(tokens - self.extra_token, 0)
        if self.keep_partial and self.float32:
            return math.ceil(np.float32(usable) / np.float32(self.seq_len))
        return -(-usable // self.seq_len) if self.keep_partial else usable // self.seq_len


@dataclass(frozen=True)
class Epochs:
    """How often the sequences are read, and whether the last time is shuffled by itself.

    ``before_last`` is the number of samples that end before the last epoch, None where all epochs are shuffled
    together.
    """

    tokens_each: int
    count: int
    before_last: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens in all epochs."""
        return self.tokens_each * self.count


def count_epochs(tokens_each: int, num_samples: int | None, shape: SampleShape, *, where: str = "") -> Epochs:
    """The fewest epochs that hold ``num_samples`` samples (one where that is None).

    Raises:
        DataError: there are no tokens to make samples of (megatron-core never returns then).
    """
    if num_samples is None:
        return Epochs(tokens_each, 1)
    if tokens_each == 0:
        raise DataError(
            f"{where or 'this part of the data'} holds no tokens, {num_samples:,} samples are wanted from it",
            "give it a larger share in split, or leave it out of paths",
        )
    seq_len, extra = shape.seq_len, shape.extra_token
    epochs = max(1, -(-(num_samples * seq_len + extra) // tokens_each))
    if epochs == 1:
        return Epochs(tokens_each, 1)
    before_last = ((epochs - 1) * tokens_each - extra) // seq_len
    per_epoch = (tokens_each - extra) // seq_len
    from_last = num_samples - before_last
    assert 0 <= from_last <= per_epoch + 1
    separate = from_last < int(_SEPARATE_BELOW * per_epoch)
    return Epochs(tokens_each, epochs, before_last if separate else None)


# ------------------------------------------------------------------------------------------- the indices


@dataclass(frozen=True)
class GptIndices:
    """The three indices of one data set."""

    document_index: np.ndarray  # int32 [D], sequence numbers
    sample_index: np.ndarray  # int32 or int64 [n + 1, 2]
    shuffle_index: np.ndarray  # uint32 or int64 [n]

    def __len__(self) -> int:
        return len(self.shuffle_index)


def build_indices(
    lengths: np.ndarray, sequences: tuple[int, int], epochs: Epochs, shape: SampleShape, *, seed: int
) -> GptIndices:
    """The indices of a split: of ``sequences`` (first, one past the last) of a file with ``lengths`` (int32).

    Costs about 0.2 s for 2M documents and 1.6G tokens; 8 D + 32 n bytes while it works.
    """
    random = np.random.RandomState(seed)
    documents = document_index(*sequences, epochs, random)
    samples = shape.count(epochs.tokens)
    rows = sample_index(lengths, documents, samples, shape)
    return GptIndices(documents, rows, shuffle_index(samples, epochs.before_last, random))


def document_index(begin: int, end: int, epochs: Epochs, random: np.random.RandomState) -> np.ndarray:
    """Sequence numbers ``begin`` to ``end`` once for each epoch, shuffled; int32 ``[epochs * (end - begin)]``."""
    once = np.arange(begin, end, dtype=np.int32)
    together = epochs.count if epochs.before_last is None else epochs.count - 1
    documents = np.tile(once, together)
    random.shuffle(documents)
    if epochs.before_last is None:
        return documents
    random.shuffle(once)
    return np.concatenate((documents, once))


def sample_index(lengths: np.ndarray, documents: np.ndarray, samples: int, shape: SampleShape) -> np.ndarray:
    """Where each sample begins, and where the last ends: rows of (entry of ``documents``, token in it).

    With x = 1 a boundary lies in the document that holds token ``j * S``, with x = 0 right behind token
    ``j * S - 1``. Row 0 is always (0, 0). A partial last sample ends with the last document; where that is empty and
    x = 1, with the last document that is not (megatron-core stops with an assertion there).

    Args:
        lengths: of all sequences of the file, int32.
        documents: document index, int32.
        samples: n, from ``shape.count``.

    Returns:
        int32 ``[n + 1, 2]``; int64 where that is too small.
    """
    largest = max(len(documents), int(lengths.max(initial=0)))
    rows = np.zeros((samples + 1, 2), dtype=np.int32 if largest <= _INT32_MAX else np.int64)
    if samples == 0:
        return rows
    sizes = lengths.take(documents)
    ends = np.cumsum(sizes, dtype=np.int64)
    entries = _entries_at_boundaries(ends, samples, shape)
    for first in range(1, samples + 1, _SLICE):
        entry = entries[first : first + _SLICE]
        positions = np.arange(first, first + len(entry), dtype=np.int64)
        positions *= shape.seq_len
        at = np.minimum(entry, len(documents) - 1)
        begins = ends.take(at)
        begins -= sizes.take(at)
        rows[first : first + len(entry), 0] = entry
        np.subtract(positions, begins, out=rows[first : first + len(entry), 1], casting="same_kind")
    _close_partial_rows(rows, sizes, int(ends[-1]), shape)
    return rows


def _entries_at_boundaries(ends: np.ndarray, samples: int, shape: SampleShape) -> np.ndarray:
    """For boundary ``k`` the number of documents that end before it, int64 ``[n + 1]``.

    That is a count of ``ends <= k * S`` (x = 1) or ``ends < k * S`` (x = 0): each end is put into the first
    boundary it counts for, and the counts are added up. Cheaper than a search for each boundary.
    """
    if shape.extra_token:
        counts_from = (ends + (shape.seq_len - 1)) // shape.seq_len
    else:
        counts_from = ends // shape.seq_len
        counts_from += 1
    if counts_from[-1] > samples:  # documents behind the last boundary, which may be many
        counts_from = counts_from[: int(np.searchsorted(counts_from, samples, side="right"))]
    counts = np.bincount(counts_from, minlength=samples + 1)
    return np.cumsum(counts, out=counts)


def _close_partial_rows(rows: np.ndarray, sizes: np.ndarray, tokens: int, shape: SampleShape) -> None:
    """Rows that ran past the end of the stream, of a padded last sample, point at its last token."""
    whole = (tokens - shape.extra_token) // shape.seq_len  # boundaries up to here lie inside
    if whole + 1 < len(rows):
        last = len(sizes) - 1
        if shape.extra_token and sizes[last] == 0:
            last = int(np.flatnonzero(sizes)[-1])
        rows[whole + 1 :] = last, int(sizes[last]) - shape.extra_token


def shuffle_index(samples: int, before_last: int | None, random: np.random.RandomState) -> np.ndarray:
    """A permutation of the samples; those of a last epoch by itself stay behind the others.

    uint32 ``[n]``, int64 from 2**32 - 2 samples on.
    """
    dtype = np.uint32 if samples < _UINT32_MAX - 1 else np.int64
    border = samples if before_last is None else before_last
    first = np.arange(border, dtype=dtype)
    random.shuffle(first)
    if border == samples:
        return first
    last = np.arange(border, samples, dtype=dtype)
    random.shuffle(last)
    return np.concatenate((first, last))
