"""``practice``: small questions with one right answer, made on the spot: a format is learned without a data set.

Greetings, capitals, sums, words that are repeated, spelled, turned around or counted, some after a system message and
some twice in a conversation. They teach when to speak and when to end, and a dozen facts. (nanochat's SpellingBee is
made in this way too.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from automodel_cli.corpus.conversations.conversation import Conversation, Message
from automodel_cli.corpus.conversations.rows import NumberedRow
from automodel_cli.files import hash_bytes

ROWS = 20_000
_SEED = 0
_EDITION = 2  # of the questions: another number where they change

_WORDS = (
    "apple", "bird", "boat", "book", "bread", "chair", "cloud", "coat", "corn", "desk", "door", "dream", "field",
    "fire", "fish", "flower", "forest", "garden", "glass", "gold", "grass", "hand", "heart", "hill", "horse",
    "house", "island", "jacket", "juice", "king", "lake", "lamp", "leaf", "lemon", "letter", "light", "lion",
    "market", "milk", "mirror", "moon", "morning", "mountain", "music", "needle", "night", "north", "ocean",
    "orange", "paper", "pencil", "piano", "plate", "pocket", "queen", "rain", "river", "road", "rock", "roof",
    "rose", "salt", "sand", "school", "ship", "silver", "sky", "snow", "song", "spoon", "spring", "star", "stone",
    "storm", "street", "sugar", "summer", "sun", "table", "tea", "tiger", "tower", "town", "train", "tree",
    "valley", "village", "voice", "water", "wheel", "wind", "window", "winter", "wolf", "yard",
)  # fmt: skip
_SYSTEMS = ("You answer in as few words as you can.", "You are a patient teacher.", "You are a helpful assistant.")
_SMALL_TALK = (
    ("Hello", "Hello! What would you like to know?"),
    ("Hi!", "Hello! What would you like to know?"),
    ("How are you?", "Very well, thank you."),
    ("Who are you?", "I am a very small language model. I know a few capitals, and I spell and count."),
    ("What can you do?", "I can spell words, turn them around, count them, and name a few capitals."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
)
_CAPITALS = (
    ("Austria", "Vienna"), ("Egypt", "Cairo"), ("France", "Paris"), ("Germany", "Berlin"), ("Greece", "Athens"),
    ("Ireland", "Dublin"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Norway", "Oslo"), ("Peru", "Lima"),
    ("Portugal", "Lisbon"), ("Spain", "Madrid"),
)  # fmt: skip
Drawn = Callable[[int], int]  # a number below the argument


def _talk(draw: Drawn) -> tuple[str, str]:
    return _SMALL_TALK[draw(len(_SMALL_TALK))]


def _capital(draw: Drawn) -> tuple[str, str]:
    country, city = _CAPITALS[draw(len(_CAPITALS))]
    return f"What is the capital of {country}?", f"The capital of {country} is {city}."


def _sum(draw: Drawn) -> tuple[str, str]:
    a, b = draw(20), draw(20)
    return f"What is {a} + {b}?", str(a + b)


def _repeat(draw: Drawn) -> tuple[str, str]:
    word = _WORDS[draw(len(_WORDS))]
    return f"Say the word {word}.", f"{word}."


def _spell(draw: Drawn) -> tuple[str, str]:
    word = _WORDS[draw(len(_WORDS))]
    return f"Spell {word}.", "-".join(word)


def _reverse(draw: Drawn) -> tuple[str, str]:
    one, two = _WORDS[draw(len(_WORDS))], _WORDS[draw(len(_WORDS))]
    return f"Turn around: {one} {two}", f"{two} {one}"


def _count(draw: Drawn) -> tuple[str, str]:
    word, number = _WORDS[draw(len(_WORDS))], 1 + draw(5)
    return f"How many words are there: {' '.join([word] * number)}", str(number)


_KINDS = (_talk, _capital, _sum, _repeat, _spell, _reverse, _count)


def example(number: int) -> Conversation:
    """Conversation ``number``, the same whatever was made before."""
    generator = np.random.default_rng([_SEED, number])

    def draw(below: int) -> int:
        return int(generator.integers(below))

    turns: list[Message] = []
    if draw(3) == 0:
        turns.append(Message("system", _SYSTEMS[draw(len(_SYSTEMS))]))
    for _ in range(1 + (draw(4) == 0)):
        question, answer = _KINDS[draw(len(_KINDS))](draw)
        turns += [Message("user", question), Message("assistant", answer)]
    return tuple(turns)


class PracticeRows:
    """The examples as a ``RowSource``."""

    def __len__(self) -> int:
        return ROWS

    def rows(self, chosen: np.ndarray) -> Iterator[NumberedRow]:
        for number in np.flatnonzero(chosen).tolist():
            yield "practice", number, {"messages": [vars(turn) for turn in example(number)]}

    def describe(self) -> dict[str, Any]:
        return {"kind": "practice", "rows": ROWS, "seed": _SEED, "edition": _EDITION}

    def identity(self) -> str:
        return hash_bytes(repr(self.describe()).encode())
