"""Does a model have a row for every token id it will meet? Sampled before a run, looked at in every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import TokenReader
from automodel_cli.errors import DataError

_SAMPLES = 256  # pieces looked at for the largest id ...
_SAMPLE_TOKENS = 8192  # ... of this many tokens: 2M tokens, a few milliseconds


def sampled_maxima(ranges: Sequence[tuple[int, int]], reader: Callable[[int], TokenReader]) -> dict[int, int]:
    """Largest sampled id by file: pieces spread evenly over files and tokens, all of them where they are few.

    Args:
        ranges: first token and number of tokens to look at in each file; files without any are passed over.
        reader: opens a file by its number.
    """
    filled = [number for number, (_, tokens) in enumerate(ranges) if tokens]
    picked = np.unique(np.linspace(0, len(filled) - 1, min(len(filled), _SAMPLES)).astype(np.int64)).tolist()
    pieces = _SAMPLES // max(len(picked), 1)
    return {
        filled[at]: _sampled_maximum(reader(filled[at]), *ranges[filled[at]], pieces=pieces) for at in picked
    }


def _sampled_maximum(reader: TokenReader, first: int, tokens: int, *, pieces: int) -> int:
    length = min(_SAMPLE_TOKENS, tokens)
    needed = -(-tokens // length)  # pieces that would cover all of them
    starts = np.linspace(first, first + tokens - length, min(pieces, needed)).astype(np.int64)
    return max(int(reader.read(start, length).max()) for start in starts.tolist())


def refuse_beyond(
    rows: np.ndarray,
    vocab_size: int,
    place: Callable[[int, int], tuple[str, int]],
    ignored: int | None = None,
) -> None:
    """Refuse ``rows`` that were read (int64 ``[B, T]``) that hold an id without a row in the model.

    Args:
        place: (row, column) -> name of the file, position in tokens.
        ignored: an id that stands for padding, which is replaced later.

    Raises:
        DataError: naming the id, the file and the position.
    """
    wrong = rows.view(np.uint64) >= vocab_size  # negative ids are large ones so
    if ignored is not None:
        wrong &= rows != ignored
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0].tolist()
    name, position = place(row, column)
    raise DataError(
        f"{name} holds token id {int(rows[row, column]):,} at position {position:,}, the model has {vocab_size:,} ids",
        "the file is damaged or of another tokenizer: make or copy it again; `automodel preprocess verify` "
        "reads all of it",
    )
