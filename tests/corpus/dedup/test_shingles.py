"""Shingles against a plain computation, one word at a time."""

import re

import numpy as np
import pytest

from automodel_cli.corpus.dedup import shingles
from automodel_cli.corpus.dedup.shingles import Shingling, jaccard, shingle

ALL = 2**64 - 1
TEXTS = [
    "", "a", "A b", "a-b c d", "...", "“Hi” — é É ü", " x", "z z z z z", "", "The quick, brown fox! jumps 12 x",
    "今天天气很好，我们去公园散步吧。", "naïve café—naïve",
    "\u00a0a\u2003b\u3000c", "one two three four five six", "\0 x\ty",
]  # fmt: skip


def mix(value: int) -> int:
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & ALL
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & ALL
    return value ^ (value >> 33)


def units_of(text: str, kind: str) -> list[int]:
    """Hashes of words, or of characters."""
    if not text.isascii() or kind == "characters":
        text = shingles._SIGNS.sub(" ", text.lower())
    if kind == "characters":
        return [mix(ord(c) + 1) for c in text if ord(c) > 127 or c.isalnum()]
    words = re.findall(rb"[0-9A-Za-z\x80-\xff]+", text.encode())
    values = [mix(ord(chr(byte).lower()) + 1 if byte < 128 else byte + 1) for byte in range(256)]
    powers = [pow(shingles._P, k, 2**64) for k in range(100)]
    return [sum(values[byte] * powers[k] for k, byte in enumerate(word)) & ALL for word in words]


def plain(text: str, kind: str, size: int) -> list[int]:
    units = units_of(text, kind)
    if not units:
        return []
    runs = [units[k : k + size] for k in range(max(1, len(units) - size + 1))]
    found = []
    for run in runs:
        value = 0
        for unit in run:
            value = (value * shingles._Q + unit) & ALL
        found.append(mix(value if len(run) == size else value ^ len(run)))
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 13])
@pytest.mark.parametrize("kind", ["words", "characters"])
@pytest.mark.parametrize("piece_bytes", [7, 60, 1 << 20])
def test_hashes_are_those_of_a_plain_computation_however_text_is_cut(kind, size, piece_bytes, monkeypatch):
    monkeypatch.setattr(shingles, "_PIECE_BYTES", piece_bytes)
    found = shingle(TEXTS, Shingling(kind, size))
    assert len(found.offsets) == len(TEXTS) + 1
    for number, text in enumerate(TEXTS):
        hashes = found.hashes[found.offsets[number] : found.offsets[number + 1]]
        assert hashes.tolist() == plain(text, kind, size), text


def test_hashes_are_the_same_forever():
    found = shingle(["The quick brown fox jumps over the lazy dog"], Shingling()).hashes
    assert found.tolist()[:2] == [4965217512181215642, 16685316577705938513]


def test_case_punctuation_and_space_make_no_difference():
    first, second = "Hello,  World: it's\n“fine” — ÉTÉ", "hello world it s fine été"
    found = shingle([first, second], Shingling("words", 3))
    assert np.array_equal(found.unique(0), found.unique(1))
    assert len(found.unique(0)) == 5 - 3 + 2


def test_nothing_gives_nothing():
    assert shingle([], Shingling()).offsets.tolist() == [0]
    assert shingle(["", "?!"], Shingling()).offsets.tolist() == [0, 0, 0]


def test_jaccard_is_shared_over_all():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 2 / 5
    assert jaccard(np.zeros(0), np.zeros(0)) == 0
