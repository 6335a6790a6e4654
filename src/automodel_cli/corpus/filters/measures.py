"""Numbers about a text that tell poor text from good: what the filters compare with their limits.

From Rae et al. 2021, "Scaling language models: methods, analysis and insights from training Gopher" (appendix A.1.1);
the paper leaves open what words and lines are, here they are:

| what        | is                                                                                  |
|-------------|-------------------------------------------------------------------------------------|
| words       | what white space parts; counted and measured are those with a letter or digit       |
| lines       | what line ends part, except for blank ones                                          |
| paragraphs  | what two or more line ends part                                                     |
| repeated    | came before in the same text (the first time does not count)                        |
| top n-gram  | the run of n words that comes most often, if it comes at least twice; each time it  |
|             | comes, overlapping or not, its characters count                                     |
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "-", "*")
_ELLIPSES = ("...", "…")
_PARAGRAPH_END = re.compile(r"\n\s*\n\s*")


class Measures:
    """One text; every number is computed when it is asked for, once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        """All words, signs that stand alone too."""
        return self.text.split()

    @functools.cached_property
    def _spelled(self) -> list[str]:
        return [word for word in self.words if word.isalnum() or any(map(str.isalnum, word))]

    @functools.cached_property
    def lines(self) -> list[str]:
        """All lines that are not blank."""
        return [line for line in self.text.splitlines() if line and not line.isspace()]

    # ---------------------------------------------------------------------------------------- length

    @property
    def characters(self) -> int:
        """Characters of the text."""
        return len(self.text)

    @property
    def word_count(self) -> int:
        """Words with a letter or digit."""
        return len(self._spelled)

    @property
    def mean_word_length(self) -> float:
        """Characters of these words."""
        return sum(map(len, self._spelled)) / max(1, len(self._spelled))

    # --------------------------------------------------------------------------------------- quality

    @property
    def symbol_ratio(self) -> float:
        """Hash signs, or ellipses if there are more of them, for each word."""
        hashes, ellipses = self.text.count("#"), sum(map(self.text.count, _ELLIPSES))
        return max(hashes, ellipses) / max(1, len(self.words))

    @property
    def bullet_lines(self) -> float:
        """The share of lines that begin with a bullet."""
        return sum(line.lstrip().startswith(BULLETS) for line in self.lines) / max(1, len(self.lines))

    @property
    def ellipsis_lines(self) -> float:
        """The share of lines that end with an ellipsis."""
        return sum(line.rstrip().endswith(_ELLIPSES) for line in self.lines) / max(1, len(self.lines))

    @property
    def alphabetic_words(self) -> float:
        """The share of words that have a letter."""
        return sum(word.isalpha() or any(map(str.isalpha, word)) for word in self.words) / max(1, len(self.words))

    @property
    def stop_words(self) -> int:
        """How many of eight common English words occur, in small letters or with a capital."""
        return len(STOP_WORDS & {word.strip(".,;:!?\"'()").lower() for word in self.words if len(word) < 12})

    # ------------------------------------------------------------------------------------ repetition

    @functools.cached_property
    def _repeated_lines(self) -> tuple[int, int]:
        return _repeated(self.lines)

    @functools.cached_property
    def _paragraphs(self) -> list[str]:
        return [some for some in _PARAGRAPH_END.split(self.text.strip()) if some]

    @functools.cached_property
    def _repeated_paragraphs(self) -> tuple[int, int]:
        return _repeated(self._paragraphs)

    @property
    def duplicate_lines(self) -> float:
        """The share of lines that are repeated."""
        return self._repeated_lines[0] / max(1, len(self.lines))

    @property
    def duplicate_line_characters(self) -> float:
        """The share of the text's characters that are in them."""
        return self._repeated_lines[1] / max(1, len(self.text))

    @property
    def duplicate_paragraphs(self) -> float:
        """The share of paragraphs that are repeated."""
        return self._repeated_paragraphs[0] / max(1, len(self._paragraphs))

    @property
    def duplicate_paragraph_characters(self) -> float:
        """The share of the text's characters that are in them."""
        return self._repeated_paragraphs[1] / max(1, len(self.text))

    @functools.cached_property
    def _runs(self) -> _Runs:
        return _Runs(self.words)

    def top_ngram(self, size: int) -> float:
        """The share of the text's characters that are in its most common run of ``size`` words, with spaces."""
        return self._runs.top_characters(size) / max(1, len(self.text))

    def duplicate_ngrams(self, size: int) -> float:
        """The share of the text's characters that are in words of repeated runs of ``size`` words."""
        return self._runs.repeated_characters(size) / max(1, len(self.text))


def _repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """How many pieces came before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count, characters = count + 1, characters + len(piece)
        seen.add(piece)
    return count, characters


class _Runs:
    """Runs of words as numbers: equal runs have equal ones.

    A run that does not repeat has no longer run that does, so each size only looks at where the one before repeated.
    """

    def __init__(self, words: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self._words = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
        self._ends = np.concatenate(([0], np.cumsum([len(word) for word in words], dtype=np.int64)))
        self._known = {1: (np.arange(len(words)), self._words)}

    def _several(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Where runs of ``size`` words begin that occur at least twice, in order, and which run each is."""
        if size not in self._known:
            begins, runs = self._several(size - 1)
            inside = begins + size <= len(self._words)
            begins, runs = begins[inside], runs[inside]
            pairs = runs * (len(self._words) + 1) + self._words[begins + size - 1]
            _, which, counts = np.unique(pairs, return_inverse=True, return_counts=True)
            again = counts[which] > 1
            self._known[size] = begins[again], which[again]
        return self._known[size]

    def top_characters(self, size: int) -> int:
        """Characters of all occurrences of the most common run, with a space between words; of equals the first."""
        begins, runs = self._several(size)
        if not len(begins):
            return 0
        counts = np.bincount(runs)
        first = int(begins[np.argmax(counts[runs] == counts.max())])
        return int(counts.max()) * (int(self._ends[first + size] - self._ends[first]) + size - 1)

    def repeated_characters(self, size: int) -> int:
        """Characters of words that are in a run which came before."""
        begins, runs = self._several(size)
        _, firsts = np.unique(runs, return_index=True)
        again = np.ones(len(begins), dtype=bool)
        again[firsts] = False
        edges = np.zeros(len(self._words) + 1, dtype=np.int64)
        np.add.at(edges, begins[again], 1)
        np.add.at(edges, begins[again] + size, -1)
        return int(np.diff(self._ends)[np.cumsum(edges[:-1]) > 0].sum())
