"""The bigram baseline against a dense count table written out in the plainest way."""

import itertools
import math

import numpy as np
import pytest

from automodel_cli.errors import DataError
from automodel_cli.evaluation.bigram import ALPHAS, bigram_loss


def dense_loss(train, held_out, vocab_size, alpha):
    counts = np.zeros((vocab_size, vocab_size))
    for a, b in itertools.pairwise(train):
        counts[a, b] += 1
    losses = []
    for a, b in itertools.pairwise(held_out):
        losses.append(-math.log((counts[a, b] + alpha) / (counts[a].sum() + alpha * vocab_size)))
    return sum(losses) / len(losses)


def test_equals_the_dense_table():
    rng = np.random.default_rng(3)
    train = rng.integers(0, 20, 500).astype(np.uint16)
    held_out = rng.integers(0, 23, 200).astype(np.uint16)  # three ids are never seen in training
    result = bigram_loss([train], [held_out], vocab_size=23)
    expected = {alpha: dense_loss(train, held_out, 23, alpha) for alpha in ALPHAS}
    assert result.loss == pytest.approx(min(expected.values()), abs=1e-12)
    assert expected[result.alpha] == min(expected.values())
    assert result.tokens == 199


def test_pairs_do_not_cross_shards():
    one = bigram_loss([np.array([0, 1]), np.array([2, 3])], [np.array([1, 2])], vocab_size=4)
    assert one.loss == pytest.approx(math.log(4))  # (1, 2) was never seen


def test_too_short_is_an_error():
    with pytest.raises(DataError, match="two consecutive tokens"):
        bigram_loss([np.array([1])], [np.array([1, 2])], vocab_size=4)
