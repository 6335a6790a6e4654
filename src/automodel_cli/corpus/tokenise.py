"""One unit of text to one buffer of token ids: what a worker does all day."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from automodel_cli.corpus.engines import Sampled
from automodel_cli.corpus.manifest import Separator
from automodel_cli.corpus.readers import read_unit
from automodel_cli.corpus.refusals import naming_refusals
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizer_base import EngineChoice, Tokenizer, flatten
from automodel_cli.corpus.units import ReadOptions, TokenChunk, Unit

Eot = Literal["prepend", "append", "none"]
_CHARACTERS_AT_ONCE = 1 << 18  # ids of so much text are narrowed together, while they are still in the cache


@dataclass(frozen=True)
class Work:
    """All that a worker process needs to know."""

    tokenizer_folder: Path
    engine: EngineChoice
    read: ReadOptions
    eot: Eot
    separator: Separator = "eos"

    def tokeniser(self, tokenizer: Tokenizer | None = None) -> Tokeniser:
        """With ``tokenizer``, or with the worker's own from the folder."""
        if tokenizer is None:
            tokenizer = load_tokenizer(self.tokenizer_folder)
            tokenizer.use_engine(self.engine, probe=False)
        return Tokeniser(tokenizer, self.read, self.eot, self.separator)


class Tokeniser:
    """Reads a unit and encodes its documents, the token between them included, into one buffer."""

    def __init__(
        self, tokenizer: Tokenizer, read: ReadOptions, eot: Eot, separator: Separator = "eos"
    ) -> None:
        self._engine = tokenizer.engine
        self._dtype = tokenizer.dtype
        self._read = read
        between = tokenizer.bos_id if separator == "bos" else tokenizer.eot_id
        assert eot == "none" or between is not None, "the recipe refuses such a tokenizer"
        ids = np.array([] if eot == "none" else [between], dtype=np.uint32)
        self._before = ids if eot == "prepend" else ids[:0]
        self._after = ids if eot == "append" else ids[:0]
        self._number = 0  # of the document that is being encoded

    def __call__(self, unit: Unit) -> TokenChunk:
        if isinstance(self._engine, Sampled):
            self._engine.bound_memory()
        found = read_unit(unit, self._read)
        chunk = naming_refusals(
            lambda: self.encode(found.texts, continues=unit.continues, unfinished=unit.unfinished),
            unit,
            found,
            lambda: self._number,
        )
        chunk.split, chunk.numbers = unit.split, np.array(found.numbers, dtype=np.int64)
        chunk.rows, chunk.bad, chunk.text_bytes = found.rows, found.bad, unit.size
        return chunk

    def encode(self, texts: list[str], *, continues: bool = False, unfinished: bool = False) -> TokenChunk:
        """Ids of ``texts``. A document that began in an earlier unit gets no end-of-text before it, one that goes
        on in a later unit none after it."""
        buffers: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        pieces: list[np.ndarray] = []
        characters = 0
        encode = self._engine.encode
        for number, text in enumerate(texts):
            self._number = number
            first, last = number == 0, number == len(texts) - 1
            pieces.append(self._before[:0] if continues and first else self._before)
            pieces.append(encode(text))
            pieces.append(self._after[:0] if unfinished and last else self._after)
            characters += len(text)
            if characters >= _CHARACTERS_AT_ONCE or last:
                flat, sizes = flatten(pieces, self._dtype)
                buffers.append(flat)
                lengths.append(sizes.reshape(-1, 3).sum(axis=1))
                pieces, characters = [], 0
        if not buffers:
            return TokenChunk(np.zeros(0, self._dtype), np.zeros(0, np.int64), continues, unfinished)
        tokens = buffers[0] if len(buffers) == 1 else np.concatenate(buffers)  # a long document is not copied
        return TokenChunk(tokens, np.concatenate(lengths), continues, unfinished)
