"""Documents and edited copies of them, by seed."""

import itertools
import random

_SYLLABLES = ("ba", "ke", "lo", "mi", "nu"), ("ra", "se", "ti", "vo"), ("n", "s", "l", "")
WORDS = ["".join(word) for word in itertools.product(*_SYLLABLES)]


def document(rng: random.Random, words: int = 120) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def edited(rng: random.Random, text: str, share: float) -> str:
    """``text`` with about that share of its words replaced, or as much cut from an end, or added at one."""
    words = text.split()
    count = max(1, round(share * len(words)))
    how = rng.randrange(4)
    if how == 0:
        for _ in range(count):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
    elif how == 1:
        words = words[count:]
    elif how == 2:
        words = words[:-count]
    else:
        words += [rng.choice(WORDS) for _ in range(count)]
    return " ".join(words)


def planted(documents: int, seed: int = 0) -> list[str]:
    """Documents of which about a third are copies or edited copies of an earlier one."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(documents):
        kind = rng.random() if texts else 1.0
        if kind < 0.1:
            texts.append(rng.choice(texts))
        elif kind < 0.35:
            texts.append(edited(rng, rng.choice(texts), rng.choice((0.02, 0.05, 0.1, 0.2))))
        else:
            texts.append(document(rng, rng.randrange(20, 200)))
    return texts


def word_sets(texts: list[str], size: int = 5) -> list[frozenset[tuple[str, ...]]]:
    """The shingles of each text, straightforwardly."""
    found = []
    for text in texts:
        words = text.lower().split()
        found.append(frozenset(tuple(words[k : k + size]) for k in range(max(1, len(words) - size + 1))))
    return found


def jaccard(first: frozenset, second: frozenset) -> float:
    return len(first & second) / len(first | second)


def clusters_of(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """For each document the first one that pairs connect it with."""
    first = list(range(count))

    def find(number: int) -> int:
        while first[number] != number:
            number = first[number]
        return number

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        first[high] = low
    return [find(number) for number in range(count)]
