"""Signatures estimate the similarity, bands find what they promise, and another library's hashes are refused."""

import random
import sys

import numpy as np
import pytest
from tests.corpus.dedup.planted import document, edited, jaccard, word_sets

from automodel_cli.corpus.dedup import minhash
from automodel_cli.corpus.dedup.minhash import (
    EMPTY,
    Banding,
    agreements_needed,
    band_keys,
    check_library,
    choose_banding,
    signatures,
)
from automodel_cli.corpus.dedup.shingles import Shingling, shingle
from automodel_cli.errors import ConfigError


def test_signatures_estimate_the_exact_similarity():
    rng, hashes = random.Random(1), 128
    texts = []
    for share in (0.01, 0.03, 0.05, 0.1, 0.2) * 60:
        text = document(rng)
        texts += [text, edited(rng, text, share)]
    found = signatures(shingle(texts, Shingling()), hashes)
    sets = word_sets(texts)
    exact = np.array([jaccard(sets[k], sets[k + 1]) for k in range(0, len(texts), 2)])
    estimated = (found[0::2] == found[1::2]).mean(axis=1)
    error = np.sqrt(exact * (1 - exact) / hashes) + 1e-9
    assert abs(np.mean((estimated - exact) / error)) < 4 / np.sqrt(len(exact))
    assert 0.4 < np.std((estimated - exact) / error) < 1.2  # below one: its hash functions are not independent


def test_a_signature_is_of_its_document_alone():
    texts = ["", "one two", "a b c d e f g", "?"]
    together = signatures(shingle(texts, Shingling()), 20)
    for number, text in enumerate(texts):
        assert np.array_equal(together[number], signatures(shingle([text], Shingling()), 20)[0])
    assert (together[[0, 3]] == EMPTY).all() and (together[[1, 2]] != EMPTY).all()


def test_another_version_of_the_library_is_refused(monkeypatch):
    check_library.cache_clear()
    monkeypatch.setattr(minhash, "_SEED", 43)
    with pytest.raises(ConfigError, match=r"computes other signatures than rensa 0.5"):
        check_library()
    monkeypatch.setattr(minhash, "_SEED", 42)
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match="rensa, which is not installed"):
        check_library()
    monkeypatch.undo()
    check_library()


def test_bands_are_equal_just_where_all_their_values_are():
    rng, banding = np.random.default_rng(0), Banding(5, 3)
    found = rng.integers(0, 2, (200, 15), dtype=np.uint32)
    keys = band_keys(found, banding)
    for band in range(5):
        rows = [tuple(row) for row in found[:, 3 * band : 3 * band + 3].tolist()]
        for a in range(0, 200, 7):
            assert [rows[a] == row for row in rows] == (keys[a, band] == keys[:, band]).tolist()
    columns = [set(keys[:, band].tolist()) for band in range(5)]
    assert not set.intersection(*columns) and sum(map(len, columns)) == len(set.union(*columns))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_the_most_selective_bands_that_find_enough_are_chosen(threshold):
    chosen = choose_banding(threshold, 128, 0.95)
    assert chosen.hashes <= 128
    assert chosen.probability(threshold) >= 0.95
    assert Banding(128 // (chosen.rows + 1), chosen.rows + 1).probability(threshold) < 0.95


def test_candidates_are_as_many_as_the_formula_says():
    rng, banding = np.random.default_rng(0), Banding(9, 5)
    first = rng.integers(0, 2**32, (4000, banding.hashes), dtype=np.uint32)
    same = rng.random(first.shape) < 0.6
    second = np.where(same, first, rng.integers(0, 2**32, first.shape, dtype=np.uint32))
    share = (band_keys(first, banding) == band_keys(second, banding)).any(axis=1).mean()
    assert abs(share - banding.probability(0.6)) < 0.03


def test_too_few_hashes_for_a_recall_are_refused():
    with pytest.raises(ConfigError, match=r"no 99% of the pairs at a similarity of 0.1"):
        choose_banding(0.1, 16, 0.99)


def test_agreements_are_rounded_up():
    assert [agreements_needed(x, 10) for x in (0.8, 0.81, 1.0, 0.05)] == [8, 9, 10, 1]
