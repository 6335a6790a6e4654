"""Prompts to token ids with the span that is scored, cut to the model's context.

A row is one sequence: ids with the beginning-of-text token in front, and ``[start, end)``, the ids whose
probabilities count:

    multiple_choice     from the end of the prefix that all choices share, to the end
    schema              the suffix that all options share
    language_modeling   what the prompt with the answer has after the one without

A row longer than the context keeps its tail. The first id of a row is never scored: nothing comes before it. A span
without ids would be certain: where one is left (a choice with which another begins, a tokenizer that joins the answer
with what is before it) the span moves back by one id, for all rows of the question alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.icl.prompts import Pieces
from automodel_cli.evaluation.icl.tasks import Kind

_CACHED_IDS = 1 << 25  # about 1 GiB of Python integers at the worst, mostly shared


@dataclass(frozen=True)
class Row:
    """One sequence of ids; ``ids[start:end]`` is scored."""

    ids: tuple[int, ...]
    start: int
    end: int


class Encoder:
    """Ids of prompts, with the token in front that documents begin with; a piece that was seen before costs nothing.

    ``first_id`` is that token in the corpus; without it, it is the beginning-of-text token, else the end-of-text token.
    ``stop_ids``: what ends a text that is written, the corpus' token and the end-of-text token.

    Where the tokenizer never joins letters or digits with white space that follows, a prompt is encoded piece by
    piece, and worked examples, which return in many prompts, once. Elsewhere whole prompts are remembered.

    Raises:
        ConfigError: the tokenizer has no token that a text could begin with.
    """

    def __init__(self, tokenizer: Tokenizer, first_id: int | None = None) -> None:
        usual = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eot_id
        first = usual if first_id is None else first_id
        if first is None:
            raise ConfigError(
                f"tokenizer {tokenizer.name} has neither a beginning-of-text nor an end-of-text token",
                "in-context tasks need one to begin with",
            )
        self.tokenizer = tokenizer
        self.first_id = first
        self.stop_ids = frozenset(i for i in (first_id, tokenizer.eot_id) if i is not None)
        self._known: dict[str, tuple[int, ...]] = {}
        self._size = 0

    def encode(self, prompt: Pieces) -> tuple[int, ...]:
        """The ids of a prompt."""
        if not self.tokenizer.cuts_at_spaces:
            return (self.first_id, *self._encode("".join(prompt)))
        texts = [prompt[0]]
        for piece in prompt[1:]:
            if texts[-1][-1:].isalnum() and piece[:1].isspace():
                texts.append(piece)
            else:
                texts[-1] += piece
        return (self.first_id, *(i for text in texts for i in self._encode(text)))

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            ids = tuple(self.tokenizer.encode(text))
            if self._size > _CACHED_IDS:
                self._known.clear()
                self._size = 0
            self._known[text] = ids
            self._size += len(ids)
        return self._known[text]


def rows_of(kind: Kind, prompts: Sequence[tuple[int, ...]]) -> tuple[list[Row], bool]:
    """The rows of one question from the ids of its prompts, and whether its span had to move back."""
    shared = common_suffix(prompts) if kind == "schema" else common_prefix(prompts)
    if kind == "schema":
        length = max(1, shared)
        return [Row(ids, len(ids) - length, len(ids)) for ids in prompts], shared < 1
    # Of language_modeling's two prompts the shorter one mostly ends where the answer begins; a tokenizer that joins
    # its end with the answer moves the start back.
    scored = prompts[1:] if kind == "language_modeling" else prompts
    last = min(len(ids) for ids in scored) - 1
    return [Row(ids, min(shared, last), len(ids)) for ids in scored], shared > last


def cropped(row: Row, context: int | None) -> Row:
    """The last ``context`` ids of a row; its span moves along and never begins at the first id."""
    excess = 0 if context is None else max(0, len(row.ids) - context)
    start = max(1, row.start - excess)
    return Row(row.ids[excess:], start, max(start, row.end - excess))


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many ids all sequences begin with."""
    shortest, longest = min(sequences), max(sequences)  # what these two share, those between them share too
    pairs = enumerate(zip(shortest, longest, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(shortest), len(longest)))


def common_suffix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many ids all sequences end with."""
    return common_prefix([tuple(reversed(sequence)) for sequence in sequences])
