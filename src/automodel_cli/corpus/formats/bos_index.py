"""Where documents begin in a token file: ``NAME.bos.idx`` beside ``NAME.bin``.

int32 little-endian positions, counted in tokens, of the first token of each document that starts in that file; strictly
increasing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import MAX_SHARD_TOKENS
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.errors import DataError
from automodel_cli.json_files import read_bytes

_MAX_INDEX_BYTES = 4 * MAX_SHARD_TOKENS  # a document has a token at least


def bos_index_path(bin_path: Path | str) -> Path:
    """``a/dataset.bin`` -> ``a/dataset.bos.idx``."""
    return Path(bin_path).with_suffix(".bos.idx")


def read_bos_index(bin_path: Path | str, num_tokens: int) -> np.ndarray | None:
    """The first token position of each document in ``bin_path`` (int32), or None without an index.

    Raises:
        DataError: the index is not int32, not strictly increasing, or points outside the file.
    """
    path = bos_index_path(bin_path)
    if not path.exists():
        return None
    raw = read_bytes(path, max_bytes=_MAX_INDEX_BYTES)
    hint = f"delete {path.name} (documents are then found by their BOS token) or make the corpus again"
    if len(raw) % 4:
        raise DataError(f"{path} is {len(raw)} bytes long, not a whole number of int32 positions", hint)
    positions = np.frombuffer(raw, dtype="<i4")
    if len(positions) and (positions[0] < 0 or positions[-1] >= num_tokens):
        raise DataError(
            f"{path} has positions {positions[0]}..{positions[-1]}, outside the {num_tokens:,} tokens "
            f"of {Path(bin_path).name}",
            hint,
        )
    if len(positions) > 1 and not (positions[1:] > positions[:-1]).all():
        raise DataError(f"{path} is not strictly increasing", hint)
    return positions


def bos_index_fits(reader: TokenReader, positions: np.ndarray, bos_token: int, *, sample: int = 1000) -> bool:
    """Whether (a spread sample of) ``positions`` really hold ``bos_token``.

    NeMo's tool once wrote byte offsets where positions belong; only the tokens can tell.
    """
    picked = positions[:: max(1, len(positions) // sample)]
    return all(int(reader.read(int(position), 1)[0]) == bos_token for position in picked)
