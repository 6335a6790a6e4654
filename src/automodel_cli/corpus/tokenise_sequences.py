"""One unit of rows to token sequences, as Megatron's files hold them: what a worker of ``preprocess megatron`` does.

1. a row's value for a key is a text or a list of texts; with a sentence rule a text becomes one
2. each text is encoded by itself; one without ids is no sequence
3. the end-of-document id goes after the last sequence of a document that has any
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.readers import read_unit
from automodel_cli.corpus.refusals import naming_refusals
from automodel_cli.corpus.sentences import SentenceRule
from automodel_cli.corpus.special_tokens import SpecialTokens, TextEncoder
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizer_base import EngineChoice, Tokenizer, flatten
from automodel_cli.corpus.units import FieldSequences, ReadOptions, SequenceChunk, Unit

_CHARACTERS_AT_ONCE = 1 << 18  # ids of so much text are narrowed together, while they are still in the cache


@dataclass(frozen=True)
class SequenceWork:
    """All that a worker process needs to know."""

    tokenizer_folder: Path
    engine: EngineChoice
    read: ReadOptions
    dtype: str
    append_eod: bool
    special_tokens: SpecialTokens = "text"
    add_special_tokens: bool = True
    sentences: SentenceRule | None = None

    def tokeniser(self, tokenizer: Tokenizer | None = None) -> SequenceTokeniser:
        """With ``tokenizer``, or with the worker's own from the folder."""
        if tokenizer is None:
            tokenizer = load_tokenizer(self.tokenizer_folder)
            tokenizer.use_engine(self.engine)
        return SequenceTokeniser(tokenizer, self)


class SequenceTokeniser:
    """Reads a unit and encodes what its rows have for each key."""

    def __init__(self, tokenizer: Tokenizer, work: SequenceWork) -> None:
        assert work.read.lists, "rows come as a tuple of fields"
        assert not work.append_eod or tokenizer.eot_id is not None, "the recipe refuses such a tokenizer"
        self._encoder = TextEncoder(
            tokenizer, special_tokens=work.special_tokens, add_special_tokens=work.add_special_tokens
        )
        self._number = 0  # of the document that is being encoded
        self._read = work.read
        self._dtype = np.dtype(work.dtype)
        self._split = None if work.sentences is None else work.sentences.splitter()
        self._plain = self._split is None and not len(self._encoder.before) and not len(self._encoder.after)
        self._eod = np.array([tokenizer.eot_id] if work.append_eod else [], dtype=np.uint32)

    def __call__(self, unit: Unit) -> SequenceChunk:
        self._encoder.bound_memory()
        found = read_unit(unit, self._read)
        tokens, fields = [], []
        for key in range(len(self._read.keys)):
            documents = [row[key] for row in found.texts]
            ids, field = naming_refusals(
                partial(self._encode, documents, continues=unit.continues, unfinished=unit.unfinished),
                unit,
                found,
                lambda: self._number,
            )
            tokens.append(ids)
            fields.append(field)
        return SequenceChunk(
            np.concatenate(tokens) if len(tokens) > 1 else tokens[0],
            fields,
            file=unit.file,
            continues=unit.continues,
            unfinished=unit.unfinished,
            rows=found.rows,
            bad=found.bad,
            text_bytes=unit.size,
        )

    def _encode(
        self, documents: list[Any], *, continues: bool, unfinished: bool
    ) -> tuple[np.ndarray, FieldSequences]:
        """Ids of one key's documents; the first may have begun before, the last may go on later."""
        buffer = _Buffer(self._dtype)
        sizes = np.zeros(len(documents), dtype=np.int64)
        encode, eod, plain = self._encoder.encode, self._eod, self._plain and not (continues or unfinished)
        for number, document in enumerate(documents):
            self._number = number
            if plain and type(document) is str:  # nearly always; the rest does the same, slower
                ids = encode(document)
                if length := len(ids):
                    sizes[number] = 1
                    buffer.add((ids, eod), length + len(eod))
                continue
            begins, ends = number > 0 or not continues, number < len(documents) - 1 or not unfinished
            sequences = self._sequences(document, begins=begins, ends=ends)
            if ends and (sequences or not begins) and len(self._eod):
                if sequences:
                    sequences[-1] = [*sequences[-1], self._eod]
                else:
                    sequences = [[self._eod]]
            sizes[number] = len(sequences)
            for pieces in sequences:
                buffer.add(pieces, sum(map(len, pieces)))
        tokens, lengths = buffer.close()
        return tokens, FieldSequences(len(tokens), lengths, sizes)

    def _sequences(self, document: Any, *, begins: bool, ends: bool) -> list[list[np.ndarray]]:
        """The pieces of each sequence of a document, empty ones left out."""
        if type(document) is str:
            texts = [document] if self._split is None else self._split(document)
        else:
            texts = document
        encoder, sequences = self._encoder, []
        for text in texts:
            ids = encoder.encode(text)
            pieces = [encoder.before, ids] if begins and len(encoder.before) else [ids]
            if ends and len(encoder.after):
                pieces.append(encoder.after)
            if len(pieces) > 1 or len(ids):
                sequences.append(pieces)
        return sequences


class _Buffer:
    """Gathers the pieces of sequences into one array of the file's dtype."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._tokens: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._pieces: list[np.ndarray] = []
        self._held = 0

    def add(self, pieces: Sequence[np.ndarray], length: int) -> None:
        """One sequence of ``length`` ids in all."""
        self._lengths.append(length)
        self._pieces += pieces
        self._held += length
        if self._held >= _CHARACTERS_AT_ONCE >> 2:
            self._narrow()

    def _narrow(self) -> None:
        self._tokens.append(flatten(self._pieces, self._dtype)[0])
        self._pieces, self._held = [], 0

    def close(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens and the length of each sequence."""
        if self._pieces or not self._tokens:
            self._narrow()
        tokens = self._tokens[0] if len(self._tokens) == 1 else np.concatenate(self._tokens)
        return tokens, np.array(self._lengths, dtype=np.int64)
