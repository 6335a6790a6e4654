"""MinHash signatures and the bands that find documents alike without comparing all pairs.

A signature holds, for each of ``hashes`` hash functions, the least value among a document's shingles (Broder 1997). Two
documents agree in each value with a probability that is their Jaccard similarity, so the share of values in which
they agree estimates it; with k values the standard error is sqrt(J (1 - J) / k).

A signature is cut into ``bands`` of ``rows`` values. Documents that agree in a whole band are candidates, which a
pair of similarity J becomes with probability 1 - (1 - J**rows)**bands (Leskovec, Rajaraman, Ullman, "Mining of massive
datasets", chapter 3).

The signatures are computed by rensa (a Rust library). Which documents are kept depends on every bit of them, so the
first thing that is asked of it is a signature that is known: another version may choose other hash functions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from automodel_cli.corpus.dedup.shingles import ShingleSets, mixed
from automodel_cli.errors import ConfigError
from automodel_cli.files import hash_bytes

SIGNATURE = np.dtype("<u4")
EMPTY = np.uint32(0xFFFFFFFF)  # every value of a document without shingles
_SEED = 42
_INSTALL = "pip install 'automodel-cli[dedup]'"
_KNOWN_HASHES, _KNOWN_OFFSETS, _KNOWN = 128, (0, 1, 10, 1000), "xxh3:145f00966e8dee5d"
_BAND_PRIME = 0x9FB21C651E98DF25


@dataclass(frozen=True)
class Banding:
    """How signatures are cut: ``bands`` of ``rows`` values."""

    bands: int
    rows: int

    @property
    def hashes(self) -> int:
        """Values of a signature."""
        return self.bands * self.rows

    def probability(self, similarity: float) -> float:
        """With which a pair so similar becomes a candidate."""
        return 1.0 - (1.0 - similarity**self.rows) ** self.bands


def choose_banding(threshold: float, hashes: int, recall: float) -> Banding:
    """The most selective bands that miss at most ``1 - recall`` of the pairs that are just at the threshold.

    Raises:
        ConfigError: no bands of so few hashes find so many.
    """
    for rows in range(hashes, 0, -1):
        banding = Banding(hashes // rows, rows)
        if banding.probability(threshold) >= recall:
            return banding
    raise ConfigError(
        f"{hashes} hashes find no {recall:.0%} of the pairs at a similarity of {threshold}",
        "use more --hashes, a lower --recall or a higher --near",
    )


def signatures(sets: ShingleSets, hashes: int) -> np.ndarray:
    """The signature of each document: uint32 [documents, hashes]; all ``EMPTY`` where it has no shingles.

    Raises:
        ConfigError: rensa is not installed, or computes other signatures than it did.
    """
    check_library()
    found = _compute(sets.hashes, sets.offsets, hashes)
    found[np.diff(sets.offsets) == 0] = EMPTY
    return found


def _compute(shingles: np.ndarray, offsets: np.ndarray, hashes: int) -> np.ndarray:
    import rensa  # the extra `dedup`, which exact duplicates do not need

    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets.astype(np.uint64), hashes, _SEED)
    return np.array(matrix.to_rows(), dtype=SIGNATURE).reshape(len(offsets) - 1, hashes)


@functools.cache
def check_library() -> None:
    """Compute a signature that is known.

    Raises:
        ConfigError: rensa is not installed, or computes another one.
    """
    known = mixed(np.arange(_KNOWN_OFFSETS[-1], dtype=np.uint64))
    try:
        found = _compute(known, np.array(_KNOWN_OFFSETS), _KNOWN_HASHES)
    except ImportError:
        raise ConfigError("near-duplicates need the package rensa, which is not installed", _INSTALL) from None
    if hash_bytes(found.tobytes()) != _KNOWN:
        raise ConfigError(
            f"rensa {version('rensa')} computes other signatures than rensa 0.5, by which documents are chosen here",
            _INSTALL,
        )


def band_keys(found: np.ndarray, banding: Banding) -> np.ndarray:
    """A hash of each band of each signature, uint64 [documents, bands]; no two bands have keys in common by design."""
    keys = np.empty((len(found), banding.bands), dtype=np.uint64)
    begins = mixed(np.arange(1, banding.bands + 1, dtype=np.uint64))
    for band in range(banding.bands):
        key = np.repeat(begins[band], len(found))
        for row in range(band * banding.rows, (band + 1) * banding.rows):
            key = (key ^ found[:, row]) * np.uint64(_BAND_PRIME)
            key ^= key >> np.uint64(32)
        keys[:, band] = mixed(key)
    return keys


def agreements_needed(threshold: float, hashes: int) -> int:
    """In how many values two signatures must agree to estimate a similarity of at least ``threshold``."""
    return math.ceil(threshold * hashes - 1e-9)
