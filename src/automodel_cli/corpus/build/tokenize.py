"""One unit of text to one buffer of token ids, for both formats: the work of a worker process.

1. a document has for each key a text or a list of texts; with a sentence rule a text becomes a list
2. each text is encoded by itself, with the ids that stand ``before`` and ``after`` it; without any id it is no sequence
3. the ids ``end`` go after the last sequence of a document that has any

In nanoGPT's files a document is one text, with the token between documents before or after it. In Megatron's, special
tokens of the tokenizer's own stand around each text, and end-of-document is ``end``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.sentences import SentenceRule
from automodel_cli.corpus.documents.units import FieldSequences, ReadOptions, Texts, TokenChunk, Unit
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.base import EngineChoice, Tokenizer, flatten
from automodel_cli.corpus.tokenizers.engines import CheckedEngine
from automodel_cli.corpus.tokenizers.special_tokens import SpecialTokens, text_encoder
from automodel_cli.errors import DataError

_IDS_AT_ONCE = 1 << 16  # narrowed together, while they are still in the cache


@dataclass(frozen=True)
class EncodeTask:
    """What a process needs to know to encode units. Pickled it goes without ``tokenizer``, which is then loaded."""

    tokenizer_folder: Path
    engine: EngineChoice
    read: ReadOptions
    dtype: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    special_tokens: SpecialTokens = "text"
    sentences: SentenceRule | None = None
    tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": None}

    def open(self) -> UnitEncoder:
        """What encodes units in this process."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            tokenizer = load_tokenizer(self.tokenizer_folder)
            tokenizer.use_engine(self.engine, probe=False)
        return UnitEncoder(tokenizer, self)


class UnitEncoder:
    """Reads a unit and encodes what its documents have for each key."""

    def __init__(self, tokenizer: Tokenizer, task: EncodeTask) -> None:
        self._engine, self._encode = tokenizer.engine, text_encoder(tokenizer, task.special_tokens)
        self._read, self.dtype = task.read, np.dtype(task.dtype)
        self._split = None if task.sentences is None else task.sentences.splitter()
        self._before, self._after, self._end = map(_ids, (task.before, task.after, task.end))
        self._behind = _ids((*task.after, *task.end))
        self._number = 0  # of the document that is being encoded

    def __call__(self, unit: Unit) -> TokenChunk:
        if isinstance(self._engine, CheckedEngine):
            self._engine.bound_memory()
        found = read_unit(unit, self._read)
        tokens, fields = [], []
        for key in range(len(self._read.keys)):
            documents = [row[key] for row in found.texts] if self._read.lists else found.texts
            ids, field = self._naming_refusals(unit, found, documents)
            tokens.append(ids)
            fields.append(field)
        return TokenChunk(
            np.concatenate(tokens) if len(tokens) > 1 else tokens[0],
            fields,
            file=unit.file,
            continues=unit.continues,
            unfinished=unit.unfinished,
            split=unit.split,
            rows=found.rows,
            bad=found.bad,
            text_bytes=unit.size,
            numbers=np.array(found.numbers, dtype=np.int64),
        )

    def _naming_refusals(self, unit: Unit, found: Texts, documents: list[Any]) -> tuple[np.ndarray, FieldSequences]:
        """:meth:`encode`, its errors with the place of the document.

        Raises:
            DataError: the engine refused a text or gave up on it (``engines`` says which and why), or memory ran out.
        """
        try:
            return self.encode(documents, continues=unit.continues, unfinished=unit.unfinished)
        except DataError as error:
            hint = f"leave that document out; {error.hint}" if error.hint else ""
            raise DataError(f"{_where(unit, found, self._number)}: {error.message}", hint) from error
        except MemoryError:
            where = _where(unit, found, self._number)
            raise DataError(f"{where}: out of memory", "leave that document out, or use fewer processes") from None

    def encode(
        self, documents: list[Any], *, continues: bool = False, unfinished: bool = False
    ) -> tuple[np.ndarray, FieldSequences]:
        """Ids of one key's documents; the first may have begun before, the last may go on later."""
        buffer = _Buffer(self.dtype)
        sizes = np.zeros(len(documents), dtype=np.int64)
        encode = self._encode
        front, back = ([ids] if len(ids) else [] for ids in (self._before, self._behind))  # no empty pieces
        around, more = (len(self._before) + len(ids) for ids in (self._after, self._behind))
        plain = self._split is None and not (continues or unfinished)
        for number, document in enumerate(documents):
            self._number = number
            if plain and type(document) is str:  # nearly always; the rest does the same, slower
                ids = encode(document)
                if len(ids) + around:
                    sizes[number] = 1
                    buffer.add((*front, ids, *back), len(ids) + more)
                continue
            begins, ends = number > 0 or not continues, number < len(documents) - 1 or not unfinished
            sequences = self._sequences(document, begins=begins, ends=ends)
            if ends and (sequences or not begins) and len(self._end):
                if sequences:
                    sequences[-1].append(self._end)
                else:
                    sequences = [[self._end]]
            sizes[number] = len(sequences)
            for pieces in sequences:
                buffer.add(pieces, sum(map(len, pieces)))
        tokens, lengths = buffer.close()
        return tokens, FieldSequences(len(tokens), lengths, sizes)

    def _sequences(self, document: Any, *, begins: bool, ends: bool) -> list[list[np.ndarray]]:
        """The pieces of each sequence of a document, empty ones left out."""
        texts = document
        if type(document) is str:
            texts = [document] if self._split is None else self._split(document)
        before, after = [self._before] * begins, [self._after] * ends
        sequences = [[*before, self._encode(text), *after] for text in texts]
        return [pieces for pieces in sequences if any(map(len, pieces))]


def _ids(ids: Iterable[int]) -> np.ndarray:
    return np.array(list(ids), dtype=np.uint32)


def _where(unit: Unit, found: Texts, document: int) -> str:
    """Where a document is, for people."""
    number = found.numbers[document] if document < len(found.numbers) else document
    if unit.ordinals is not None:  # of a shuffle
        return f"document {int(unit.ordinals[number]) + 1:,} of {unit.name}"
    if unit.kind == "files":
        return str(unit.payload[number][1])
    if unit.kind == "piece":
        return f"{unit.name} from byte {unit.start:,} on"
    after = f" after byte {unit.start:,}" if unit.start else ""
    return f"row {number + 1:,}{after} of {unit.name}"


class _Buffer:
    """Collects the pieces of sequences in one array of the file's dtype."""

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
        if self._held >= _IDS_AT_ONCE:
            self._narrow()

    def _narrow(self) -> None:
        self._tokens.append(flatten(self._pieces, self._dtype)[0])
        self._pieces, self._held = [], 0

    def close(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens and the length of each sequence; a long one alone is not copied."""
        if self._pieces or not self._tokens:
            self._narrow()
        tokens = self._tokens[0] if len(self._tokens) == 1 else np.concatenate(self._tokens)
        return tokens, np.array(self._lengths, dtype=np.int64)
