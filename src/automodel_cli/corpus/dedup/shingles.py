"""Documents as sets of shingles: runs of ``size`` words (or characters) that follow each other, as 64-bit hashes.

Two documents are compared by the Jaccard similarity of these sets: shared shingles over all shingles (Broder, "On the
resemblance and containment of documents", 1997). Runs of 5 words are what FineWeb and Lee et al. 2022 ("Deduplicating
training data makes language models better") compare.

Before that a text is normalized: letters in lower case; white space and punctuation, which part words, are left out.
A text with fewer words than a shingle has one shingle, of all its words; a text without words has none.

The hashes are part of the format of a run: which documents are kept depends on them. They are arithmetic on 64-bit
integers, the same on every machine, and no library computes them:

    hash of a word   sum of V[byte] * P**position, modulo 2**64, over its UTF-8
    hash of n words  (((w1 * Q) + w2) * Q + ...) * Q + wn, then the 64-bit finalizer of MurmurHash3

A whole block of documents is worked on at a time, with prefix sums, so that no word becomes a Python object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ShingleKind = Literal["words", "characters"]

_PIECE_BYTES = 1 << 20  # of text that is hashed at a time; eight such arrays of uint64 are alive
_P, _Q = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
_P_INVERSE = pow(_P, -1, 1 << 64)
# Fixed, so that no version of Python or Unicode changes what a word is: Latin-1 signs, general punctuation, super- and
# subscripts to arrows and boxes, CJK punctuation, full-width signs.
_OTHER_SIGNS = r"\u0080-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2000-\u206f\u20a0-\u20cf"
_OTHER_SIGNS += r"\u2190-\u2bff\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\ufe30-\ufe6f\uff01-\uff0f\uff1a-\uff20"
_OTHER_SIGNS += r"\uff3b-\uff40\uff5b-\uff65\ufeff"
_SIGNS = re.compile(f"[{_OTHER_SIGNS}]+")


@dataclass(frozen=True)
class Shingling:
    """What a shingle is: ``size`` words or characters."""

    kind: ShingleKind = "words"
    size: int = 5


@dataclass(frozen=True)
class ShingleSets:
    """The shingles of some documents, one after another: uint64, and where each document's begin and end (int64)."""

    hashes: np.ndarray
    offsets: np.ndarray

    def unique(self, number: int) -> np.ndarray:
        """The set of one document, sorted."""
        return np.unique(self.hashes[self.offsets[number] : self.offsets[number + 1]])


def shingle(texts: Sequence[str], shingling: Shingling) -> ShingleSets:
    """The shingles of each text, in order; one that repeats may come more than once."""
    hash_units = _word_hashes if shingling.kind == "words" else _character_hashes
    pieces, counts = hash_units(texts)
    return _windows(pieces, counts, shingling.size)


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Shared over all, of two sets without repetitions; 0 for two empty ones."""
    together = len(first) + len(second)
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (together - shared) if together else 0.0


# ------------------------------------------------------------------------------------------------ words


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For each byte: whether it belongs to a word, and its value in a hash; of capitals that of the small letters."""
    lower = np.frombuffer(bytes(range(256)).lower(), dtype=np.uint8)
    values = mixed(lower.astype(np.uint64) + np.uint64(1))
    is_word = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
    return is_word, values


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3: every bit of the input changes each of the output with probability one half."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


_IS_WORD, _VALUES = _tables()


class _Powers:
    """``base**0, base**1, ...`` modulo 2**64, as many as were asked for so far."""

    def __init__(self, base: int) -> None:
        self._base = np.uint64(base)
        self._known = np.ones(1, dtype=np.uint64)

    def up_to(self, count: int) -> np.ndarray:
        if len(self._known) < count:
            powers = np.full(max(count, 2 * len(self._known)), self._base, dtype=np.uint64)
            powers[0] = 1
            self._known = np.multiply.accumulate(powers)
        return self._known[:count]


_POWERS, _INVERSE_POWERS = _Powers(_P), _Powers(_P_INVERSE)


def _word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The words of all texts, hashed, and how many each has."""
    hashes: list[np.ndarray] = []
    counts = np.zeros(len(texts), dtype=np.int64)
    block: list[bytes] = []
    first = held = 0
    for number, text in enumerate(texts):
        data = _plain(text)
        if block and held + len(data) > _PIECE_BYTES:
            counts[first:number] = _hash_block(block, hashes)
            block, held, first = [], 0, number
        if len(data) > _PIECE_BYTES:
            for piece in _pieces(data):
                counts[number] += _hash_block([piece], hashes)[0]
            first = number + 1
        else:
            block.append(data)
            held += len(data) + 1
    if block:
        counts[first:] = _hash_block(block, hashes)
    return np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64), counts


def _plain(text: str) -> bytes:
    """UTF-8 in which every byte above 127 belongs to a word; capitals of ASCII are the tables' matter."""
    if text.isascii():
        return text.encode()
    return _SIGNS.sub(" ", text.lower()).encode()


def _pieces(data: bytes) -> list[bytes]:
    """A long text cut where a word ends; one word may be longer than a piece."""
    pieces, start = [], 0
    gap = re.compile(rb"[^0-9A-Za-z\x80-\xff]")
    while start < len(data):
        found = gap.search(data, start + _PIECE_BYTES)
        stop = found.start() if found else len(data)
        pieces.append(data[start:stop])
        start = stop
    return pieces


def _hash_block(texts: list[bytes], hashes: list[np.ndarray]) -> np.ndarray:
    """Append the hashes of all words of some short texts; the number of words of each."""
    data = np.frombuffer(b"\n".join([*texts, b""]), dtype=np.uint8)
    edges = np.diff(_IS_WORD[data].view(np.int8), prepend=np.int8(0), append=np.int8(0))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(_VALUES[data] * _POWERS.up_to(len(data)), out=sums[1:])
    hashes.append((sums[stops] - sums[starts]) * _INVERSE_POWERS.up_to(len(data) + 1)[starts])
    ends = np.cumsum([len(text) + 1 for text in texts])
    return np.diff(np.searchsorted(starts, ends), prepend=0)


# ------------------------------------------------------------------------------------------- characters


def _character_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all texts that belong to words, hashed, and how many each has."""
    found, counts = [], np.zeros(len(texts), dtype=np.int64)
    for number, text in enumerate(texts):
        codes = np.frombuffer(_SIGNS.sub("", text.lower()).encode("utf-32-le"), dtype="<u4")
        codes = codes[(codes >= 128) | _IS_WORD[np.minimum(codes, 127)]]
        found.append(codes)
        counts[number] = len(codes)
    codes = np.concatenate(found) if found else np.zeros(0, dtype=np.uint32)
    return mixed(codes.astype(np.uint64) + np.uint64(1)), counts


# --------------------------------------------------------------------------------------------- windows


def _windows(units: np.ndarray, counts: np.ndarray, size: int) -> ShingleSets:
    """The hash of each run of ``size`` units within a document; one of all its units where it has fewer."""
    stops = np.cumsum(counts)
    starts = stops - counts
    runs = np.maximum(len(units) - size + 1, 0)
    rolled = units[:runs].copy()
    for step in range(1, size):
        rolled = rolled * np.uint64(_Q) + units[step : step + runs]
    inside = np.ones(runs, dtype=bool)  # a run that reaches into the next document is none
    for back in range(1, size):
        borders = stops - back
        inside[borders[(borders >= 0) & (borders < runs)]] = False
    kept = mixed(rolled[inside])
    numbers = np.maximum(counts - size + 1, 0)
    short = np.flatnonzero((counts > 0) & (counts < size))
    if not len(short):
        return ShingleSets(kept, np.concatenate(([0], np.cumsum(numbers))))
    return _with_short(kept, numbers, short, [units[starts[k] : stops[k]] for k in short.tolist()])


def _with_short(kept: np.ndarray, numbers: np.ndarray, short: np.ndarray, units: list[np.ndarray]) -> ShingleSets:
    places = np.cumsum(numbers)[short]
    single = np.zeros(len(short), dtype=np.uint64)
    for k, some in enumerate(units):
        value = 0
        for unit in some.tolist():
            value = (value * _Q + unit) & 0xFFFFFFFFFFFFFFFF
        single[k] = value ^ len(some)
    numbers = numbers.copy()
    numbers[short] = 1
    return ShingleSets(np.insert(kept, places, mixed(single)), np.concatenate(([0], np.cumsum(numbers))))
