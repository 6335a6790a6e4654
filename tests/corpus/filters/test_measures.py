"""Numbers about texts, by hand and against plain computations."""

import random
from collections import Counter

import pytest

from automodel_cli.corpus.filters.measures import Measures

TEXT = """# Heading one
- first point of it...
• second point 42
the end of that …

the end of that …"""


def test_numbers_of_a_small_text():
    text = Measures(TEXT)
    assert text.characters == len(TEXT)
    assert len(text.words) == 22 and text.word_count == 17
    assert text.mean_word_length == pytest.approx(sum(map(len, [
        "Heading", "one", "first", "point", "of", "it...", "second", "point", "42", *["the", "end", "of", "that"] * 2
    ])) / 17)  # fmt: skip
    assert text.symbol_ratio == 3 / 22
    assert text.bullet_lines == 2 / 5 and text.ellipsis_lines == 3 / 5
    assert text.alphabetic_words == 16 / 22
    assert text.stop_words == 3
    assert text.duplicate_lines == 1 / 5
    assert text.duplicate_line_characters == len("the end of that …") / len(TEXT)
    assert text.duplicate_paragraphs == 0


def test_repeated_paragraphs():
    text = Measures("one two\nthree\n\nfour\n \n\none two\nthree\n\nfour\n")
    assert text.duplicate_paragraphs == 1 / 2
    assert text.duplicate_paragraph_characters == len("one two\nthree" + "four") / len(text.text)


@pytest.mark.parametrize("text", ["", " \n ", "#", "…"])
def test_nothing_is_no_error(text):
    measures = Measures(text)
    for name in ("characters", "word_count", "mean_word_length", "symbol_ratio", "bullet_lines", "ellipsis_lines",
                 "alphabetic_words", "stop_words", "duplicate_lines", "duplicate_line_characters",
                 "duplicate_paragraphs", "duplicate_paragraph_characters"):  # fmt: skip
        assert getattr(measures, name) >= 0
    assert measures.top_ngram(2) == measures.duplicate_ngrams(5) == 0


def plain_top(words: list[str], size: int) -> int:
    """Characters of the most common run, joined by spaces, as often as it comes."""
    runs = [" ".join(words[k : k + size]) for k in range(len(words) - size + 1)]
    if not runs:
        return 0
    run, count = Counter(runs).most_common(1)[0]
    return count * len(run) if count > 1 else 0


def plain_repeated(words: list[str], size: int) -> int:
    """Characters of all words in runs that came before."""
    seen, covered = set(), set()
    for k in range(len(words) - size + 1):
        run = tuple(words[k : k + size])
        if run in seen:
            covered |= set(range(k, k + size))
        seen.add(run)
    return sum(len(words[k]) for k in covered)


@pytest.mark.parametrize("seed", range(30))
def test_runs_of_words_are_those_of_a_plain_computation(seed):
    rng = random.Random(seed)
    words = [rng.choice(["a", "bb", "ccc", "dddd"][: rng.randrange(1, 5)]) for _ in range(rng.randrange(60))]
    for _ in range(3):
        k = rng.randrange(len(words) + 1)
        words[k:k] = words[rng.randrange(len(words) + 1) :][:12]
    text = Measures(" ".join(words))
    for size in rng.sample(range(2, 11), 9):  # in any order
        assert text.top_ngram(size) * max(1, len(text.text)) == pytest.approx(plain_top(words, size))
        assert text.duplicate_ngrams(size) * max(1, len(text.text)) == pytest.approx(plain_repeated(words, size))
