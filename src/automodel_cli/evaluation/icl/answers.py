"""Whether what a model wrote is the answer: cut it out, normalize it, compare it with all accepted spellings.

TriviaQA's normalization (Joshi et al. 2017), as the Gauntlet applies it to every generation task: lower case, no
punctuation, no articles, single spaces. A written answer counts if it *starts* with an accepted one, because a base
model does not know where to stop.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def extract_answer(written: str, *, answer_mark: str = "", stops: Sequence[str] = ()) -> str:
    """The part of ``written`` before the first stop, and after the last ``answer_mark`` if there is one."""
    end = min((found for stop in stops if (found := written.find(stop)) >= 0), default=len(written))
    return written[:end].split(answer_mark)[-1] if answer_mark else written[:end]


def is_answer(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the normalized ``answer`` starts with one of the normalized ``accepted`` ones.

    One of which nothing is left ("a", "$a$") has to be the answer's first words, articles included.
    """
    given, words = normalize(answer), _words(answer)
    return any(
        given.startswith(wanted) if (wanted := normalize(text)) else _begins(words, _words(text))
        for text in accepted
    )


def _words(text: str) -> list[str]:
    return text.lower().translate(_PUNCTUATION).split()


def _begins(words: list[str], wanted: list[str]) -> bool:
    return bool(wanted) and words[: len(wanted)] == wanted
