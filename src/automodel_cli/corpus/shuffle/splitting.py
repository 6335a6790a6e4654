"""Which documents are for validation, and in which order a shuffled corpus has them: by hash of their place.

So the choice depends on the seed and the document's place in the source alone, never on workers, chunks or memory.
A place is ``file << 40 | row``: the file's number in the order of names and the row's number in it, bad and blank
rows counted. The shuffled order is that of ``shuffle_keys``; as the hash is a bijection, no two keys are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from automodel_cli.corpus.documents.units import Unit

Rule = Literal["none", "fraction", "tokens", "tail", "given"]
TRAIN, VAL = 0, 1
_ROW_BITS = 40  # 2^24 files of 2^40 rows


def document_hash(seed: int, purpose: str, ordinals: np.ndarray) -> np.ndarray:
    """64 well mixed bits for each document number (uint64), other ones for each seed and purpose."""
    key = np.uint64(xxhash.xxh3_64_intdigest(f"{purpose}:{seed}".encode()))
    mixed = np.asarray(ordinals, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def place_of(file: int | np.ndarray, rows: np.ndarray | int) -> np.ndarray:
    """File and row numbers as one uint64."""
    return (np.asarray(file, dtype=np.uint64) << np.uint64(_ROW_BITS)) | np.asarray(rows, dtype=np.uint64)


def document_places(unit: Unit, rows_before: int, numbers: np.ndarray | int) -> np.ndarray:
    """Places of a unit's documents from their numbers in it; ``rows_before`` of its file came in earlier units."""
    if unit.kind == "files":  # a run of small files, each one document
        return place_of(unit.file + numbers, 0)
    return place_of(unit.file, rows_before + numbers)


def shuffle_keys(seed: int, places: np.ndarray) -> np.ndarray:
    """What documents are sorted by, uint64; different places have different keys."""
    return document_hash(seed, "shuffle", places)


@dataclass(frozen=True)
class SplitRule:
    """How documents are divided.

    Attributes:
        rule: ``fraction``: each document is for validation with that probability. ``tokens``: the same until
            ``val_tokens`` are there; where ``total_tokens`` are known both splits get their exact amount.
            ``tail``: all tokens from position ``tail_start`` on. ``given``: as the units say. ``none``: all for
            training.
        max_tokens: of both splits together, or None.
    """

    rule: Rule = "none"
    seed: int = 0
    fraction: float = 0.0
    val_tokens: int = 0
    total_tokens: int | None = None
    tail_start: int = 0
    max_tokens: int | None = None

    @property
    def budgets(self) -> tuple[int | None, int | None]:
        """Most tokens for training and for validation, where they are settled beforehand."""
        if self.rule != "tokens":
            return None, None
        return None if self.total_tokens is None else self.total_tokens - self.val_tokens, self.val_tokens

    def choose(
        self, ordinals: np.ndarray, lengths: np.ndarray, *, train_left: int | None, val_left: int | None
    ) -> np.ndarray:
        """TRAIN or VAL for each new document (int8); ``*_left`` is what the budgets still allow."""
        threshold = np.uint64(min(int(self.fraction * 2**64), 2**64 - 1))
        chosen = (document_hash(self.seed, "validation", ordinals) < threshold).astype(np.int8)
        if val_left is None:
            return chosen
        for k, length in enumerate(lengths.tolist()):
            if val_left <= 0:
                chosen[k:] = TRAIN
                break
            if chosen[k] == TRAIN and train_left is not None:
                chosen[k] = TRAIN if train_left > 0 else VAL
                train_left -= length if chosen[k] == TRAIN else 0
            val_left -= length if chosen[k] == VAL else 0
        return chosen


def likely_fraction(val_tokens: int, total_tokens: int | None) -> float:
    """Probability for ``tokens``: twice the share, so that the amount is reached about half-way through."""
    if total_tokens is None:
        return 0.01
    return min(1.0, max(1e-6, 2 * val_tokens / max(total_tokens, 1)))
