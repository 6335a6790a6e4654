"""Which text a sample was: its tokens, and where in which files and documents they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_cli.data.files.documents import Document
from automodel_cli.data.files.token_dataset import TokenFileDataset
from automodel_cli.data.interface import Stretch, WindowDataset
from automodel_cli.errors import DataError


@dataclass(frozen=True)
class Piece:
    """A stretch of a file, and the documents it is of (none: nobody knows)."""

    stretch: Stretch
    documents: Sequence[Document]
    file: str  # its path or URL

    def to_json(self) -> dict[str, Any]:
        """Plain values; positions count tokens of the file from 0, ``end`` is one past the last."""
        documents = [{"number": one.number, "start": one.start} for one in self.documents]
        place = {"file": self.file, "first_token": self.stretch.first, "end_token": self.stretch.end}
        source = {} if self.stretch.source is None else {"source": self.stretch.source}
        return {**source, **place, "documents": documents}


@dataclass(frozen=True)
class Row:
    """A sample: ``tokens`` are int64 ``[T + 1]``, inputs and the label of the last."""

    sample: int
    pieces: Sequence[Piece]
    tokens: np.ndarray


def places_of(dataset: Any, samples: np.ndarray) -> list[list[Piece]]:
    """Where samples (int64 ``[N]``) lie; of data sets that are no token files an empty list each."""
    if not isinstance(dataset, TokenFileDataset):
        return [[] for _ in samples]
    offsets = dataset.sample_offsets(samples)
    return [[_piece(dataset, stretch) for stretch in dataset.stretches(offset)] for offset in offsets]


def _piece(dataset: TokenFileDataset, stretch: Stretch) -> Piece:
    number = dataset.file_number(stretch.file)
    return Piece(stretch, dataset.documents(number, stretch.first, stretch.end), dataset.files[number].name)


def read_rows(dataset: Any, samples: np.ndarray) -> list[Row]:
    """Samples (int64 ``[N]``), read again.

    Raises:
        DataError: the data set does not number its samples, or a file is missing or damaged.
    """
    if not isinstance(dataset, WindowDataset):
        raise DataError(
            f"{type(dataset).__name__} does not say where its rows lie",
            "token files do: NanogptDataset, MegatronPretraining, Mixture",
        )
    tokens = np.empty((len(samples), dataset.seq_len + 1), dtype=np.int64)
    if len(samples):
        dataset.read_samples(samples, tokens)
    places = places_of(dataset, samples)
    return [Row(int(one), where, row) for one, where, row in zip(samples, places, tokens, strict=True)]
