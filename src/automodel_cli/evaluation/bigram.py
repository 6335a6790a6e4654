"""An add-alpha bigram model: the floor that a trained language model must get under.

``p(b | a) = (count(a, b) + alpha) / (count(a) + alpha V)`` over the training tokens (Chen and Goodman,
"An Empirical Study of Smoothing Techniques for Language Modeling", 1996, section 2.2). The mean negative
log-likelihood is taken over the held-out tokens; of a grid of alphas the one that suits the *held-out* tokens best is
reported, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from automodel_cli.errors import DataError

ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class BigramResult:
    """Held-out loss in nats per token, the alpha that gave it, and how many tokens were predicted."""

    loss: float
    alpha: float
    tokens: int


def bigram_loss(train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], *, vocab_size: int) -> BigramResult:
    """Fit on ``train``, score ``held_out``; both are sequences of 1-D arrays of token ids (one a shard).

    Memory is 16 bytes for each distinct pair seen, not ``vocab_size`` squared.

    Raises:
        DataError: either side has fewer than two tokens in every shard.
    """
    pairs, pair_counts = _count_pairs(train, vocab_size)
    context_counts = np.zeros(vocab_size, dtype=np.int64)
    np.add.at(context_counts, (pairs // vocab_size).astype(np.int64), pair_counts)
    test_pairs, test_counts = _count_pairs(held_out, vocab_size)

    slot = np.searchsorted(pairs, test_pairs)
    found = (slot < len(pairs)) & (pairs[np.minimum(slot, len(pairs) - 1)] == test_pairs)
    joint = np.where(found, pair_counts[np.minimum(slot, len(pairs) - 1)], 0).astype(np.float64)
    context = context_counts[(test_pairs // vocab_size).astype(np.int64)].astype(np.float64)

    total = int(test_counts.sum())
    best = None
    for alpha in ALPHAS:
        nll = -np.log((joint + alpha) / (context + alpha * vocab_size))
        loss = float((nll * test_counts).sum() / total)
        if best is None or loss < best.loss:
            best = BigramResult(loss=loss, alpha=alpha, tokens=total)
    assert best is not None
    return best


def _count_pairs(shards: Iterable[np.ndarray], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs coded ``a * vocab_size + b`` (sorted) with their counts."""
    found: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for shard in shards:
        for start in range(0, max(len(shard) - 1, 0), 1 << 24):
            piece = np.asarray(shard[start : start + (1 << 24) + 1]).astype(np.uint64)
            codes, number = np.unique(piece[:-1] * np.uint64(vocab_size) + piece[1:], return_counts=True)
            found.append(codes)
            counts.append(number)
    if not found:
        raise DataError("no two consecutive tokens to count", "give token files with at least two tokens")
    codes, where = np.unique(np.concatenate(found), return_inverse=True)
    total = np.zeros(len(codes), dtype=np.int64)
    np.add.at(total, where, np.concatenate(counts))
    return codes, total
