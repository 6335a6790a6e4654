"""Largest ids of token files, by a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import TokenReader

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
