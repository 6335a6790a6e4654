"""Whole token files at once: an array or a list of documents to files, documents of a pair by their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from automodel_cli.corpus.formats.megatron_bin import MegatronFile, inspect_prefix
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.corpus.formats.nanogpt_bin import Layout, token_dtype
from automodel_cli.corpus.formats.nanogpt_writer import ShardInfo, ShardWriter
from automodel_cli.corpus.formats.token_reader import TokenReader


def write_token_file(
    path: Path | str,
    tokens: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    dtype: np.dtype | str | None = None,
    layout: Layout = "nemo",
) -> ShardInfo:
    """Publish a whole array as one token file; ``starts`` are the first positions of its documents."""
    chosen = np.dtype(dtype) if dtype is not None else token_dtype(int(tokens.max(initial=0)) + 1)
    writer = ShardWriter(Path(path), dtype=chosen, layout=layout)
    writer.write(tokens.astype(writer.dtype), np.zeros(0) if starts is None else starts)
    return writer.close()


class MegatronReader:
    """Sequences and documents of one pair of files, by number."""

    def __init__(self, prefix: Path | str) -> None:
        self.file = inspect_prefix(prefix)
        self.index = MegatronIndex(self.file)
        self.tokens = TokenReader(self.file.tokens)

    def sequence(self, number: int) -> np.ndarray:
        """The token ids of one sequence, in the file's dtype."""
        starts, lengths = self.index.locate(np.array([number]))
        return self.tokens.read(starts[0], lengths[0])

    def document(self, number: int) -> list[np.ndarray]:
        """The sequences of one document."""
        begin, end = self.index.document_bounds()[number : number + 2].tolist()
        return [self.sequence(sequence) for sequence in range(begin, end)]


def write_megatron_file(
    prefix: Path | str, documents: Sequence[Sequence[Sequence[int]]], *, dtype: np.dtype | str
) -> MegatronFile:
    """Publish documents, each a list of sequences of ids, as one pair of files."""
    writer = MegatronWriter(prefix, dtype=np.dtype(dtype))
    sequences = [np.asarray(sequence, dtype=np.int64) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    tokens = np.concatenate([*sequences, np.empty(0, np.int64)]).astype(writer.dtype)
    writer.write(tokens, lengths, np.array([len(document) for document in documents], dtype=np.int64))
    return writer.close()
