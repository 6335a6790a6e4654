"""Bytes of text that a token stands for, so that the tokens of a text add up to its length: for bits per byte.

A token's own spelling does not say it: SentencePiece puts a space before a text that has none, special forms
(``</w>``, ``##``, ``▁``, ``<0x0A>``) are no text, and some tokenizers do not keep white space at all. So sizes are
measured by decoding, and the sums are held against the lengths of texts. Of a tokenizer that changes them (BERT's,
GPT-1's and CLIP's drop white space) nothing is known, and of a token for unknown characters neither.

A tokenizer that puts a space before each text, also where there is one, counts right; one that leaves it out where
the text begins with a space (Metaspace) counts such a text one byte short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from automodel_cli.errors import DataError

UNKNOWN = -1
"""Size of a token of which nobody can say how many bytes it stands for."""

Encode = Callable[[str], Sequence[int]]

PROBES = (
    "a", "hello world", "a  b", "a\nb", "one\n\n  two\tthree ", "It's 12.5%, (ok)! <b> [c] x=1;", "UPPER lower",
    "naïve café", "Привет, мир", "漢字 かな", "a 👍🏽 b", "e.g. don 't  stop .",
)  # fmt: skip


@dataclass(frozen=True)
class TokenBytes:
    """Sizes in bytes by id, int32 ``[V]``; ``UNKNOWN`` where nobody can say.

    Attributes:
        inside: of a token within a text, 0 for special ones.
        first: of a token that begins a text: without the space that the tokenizer puts there.
        begins: after which ids a text begins, bool ``[V]``.
    """

    inside: np.ndarray
    first: np.ndarray
    begins: np.ndarray

    @classmethod
    def everywhere(cls, sizes: np.ndarray) -> TokenBytes:
        """Of tokens that stand for the same bytes wherever they are."""
        return cls(sizes, sizes, np.zeros(len(sizes), dtype=bool))

    def without(self, ids: Iterable[int]) -> TokenBytes:
        """The same, but nobody knows about ``ids``."""
        unsure = _marked(len(self.inside), ids)
        inside, first = (np.where(unsure, UNKNOWN, sizes).astype(np.int32) for sizes in (self.inside, self.first))
        return TokenBytes(inside, first, self.begins)

    def of(self, ids: Sequence[int]) -> int:
        """Bytes of one text from its ids; ``UNKNOWN`` where one of them is."""
        places = np.asarray(ids, dtype=np.int64)
        begins = np.concatenate([[True], self.begins[places[:-1]]])[: len(places)]
        sizes = np.where(begins, self.first[places], self.inside[places])
        return UNKNOWN if (sizes == UNKNOWN).any() else int(sizes.sum())


def measured(
    inside: np.ndarray,
    starts_with_space: np.ndarray,
    *,
    special: Iterable[int],
    added: Mapping[int, str],
    encode: Encode,
) -> TokenBytes | None:
    """The sizes with which the tokens of all probes add up to their lengths; None where there are none.

    Args:
        inside: sizes within a text.
        starts_with_space: which tokens begin with a space that may be the tokenizer's own, bool ``[V]``.
        special: ids of special tokens.
        added: spellings of others that were added to the vocabulary; one that does not add up is unknown.
    """
    without_space = np.where(starts_with_space & (inside > 0), inside - 1, inside).astype(inside.dtype)
    begins = _marked(len(inside), special)
    for candidate in (TokenBytes.everywhere(inside), TokenBytes(inside, without_space, begins)):
        certain = candidate.without(added)
        measures = {text: _adds_up(certain, text, encode) for text in PROBES}
        # A text of unknown tokens tells nothing; white space has to be among what was measured.
        if False not in measures.values() and any(measures[text] for text in PROBES if "  " in text):
            return _with_added(candidate, added, encode)
    return None


def _with_added(known: TokenBytes, added: Mapping[int, str], encode: Encode) -> TokenBytes:
    """Some tokenizers begin a new text behind each added token, with a space of their own."""

    def wrong(sizes: TokenBytes) -> list[int]:
        return [
            index
            for index, text in added.items()
            if not all(_adds_up(sizes, around, encode) for around in (f"a{text}b", f"a {text} b"))
        ]

    begins = known.begins | _marked(len(known.inside), added)
    best = min((known, replace(known, begins=begins)), key=lambda sizes: len(wrong(sizes)))
    return best.without(wrong(best))


def _adds_up(sizes: TokenBytes, text: str, encode: Encode) -> bool | None:
    """None where a token is unknown, or the tokenizer has none for a character."""
    try:
        found = sizes.of(encode(text))
    except DataError:
        return None
    return None if found == UNKNOWN else found == len(text.encode())


def _marked(size: int, ids: Iterable[int]) -> np.ndarray:
    marks = np.zeros(size, dtype=bool)
    marks[list(ids)] = True
    return marks
