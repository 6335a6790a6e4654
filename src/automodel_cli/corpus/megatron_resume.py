"""Going on with a pair of Megatron files after an interruption, wherever it came.

While a pair is written there are three temporaries (tokens, lengths, document sizes). A journal says how much of
them counts (``Kept``). The interruption may also have come while the pair was being published, or just after, before
the journal knew: then the pair is taken back, which is two renames and, at most, the index read once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from automodel_cli.corpus.megatron_bin import (
    Kept,
    MegatronIndex,
    bin_path,
    can_continue,
    idx_path,
    inspect_prefix,
    pieces,
)
from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file, fsync_folder, publish


def can_reopen(prefix: Path, dtype: np.dtype, keep: Kept) -> bool:
    """Whether ``keep`` of this pair is there, as temporaries or published."""
    if can_continue(prefix, dtype, keep) or keep[:2] == (0, 0):
        return True
    if idx_path(prefix).exists():
        try:
            file = inspect_prefix(prefix)
        except DataError:
            return False
        found = (file.num_tokens, file.num_sequences, file.num_documents)
        return file.dtype == dtype and all(have >= want for have, want in zip(found, keep, strict=True))
    (_, tokens_size), *rest = pieces(prefix, dtype, keep)
    return _has(bin_path(prefix), tokens_size) and all(_has(path, size) for path, size in rest)


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size >= size


def reopen(prefix: Path, dtype: np.dtype, keep: Kept) -> None:
    """Make the temporaries such that ``MegatronWriter(prefix, keep=keep)`` goes on with them.

    Only where ``can_reopen`` says so. May itself be interrupted and repeated.
    """
    if not can_continue(prefix, dtype, keep):
        if keep[:2] == (0, 0):  # empty documents alone: nothing but their number is needed
            _restore_empty(prefix, dtype, keep)
            return
        _take_back(prefix, dtype)
    _restore_last_length(pieces(prefix, dtype, keep)[1][0], keep)


def _take_back(prefix: Path, dtype: np.dtype) -> None:
    """Turn a published, or half published, pair into temporaries again."""
    (tokens, _), (lengths, _), (sizes, _) = pieces(prefix, dtype, (0, 0, 0))
    if idx_path(prefix).exists():
        index = MegatronIndex(inspect_prefix(prefix))
        for path, values in ((lengths, index.lengths()), (sizes, np.diff(index.document_bounds()))):
            with atomic_file(path) as handle:
                handle.write(values.astype("<i4").data)
        idx_path(prefix).unlink()
        fsync_folder(prefix.parent)
    if bin_path(prefix).exists():
        publish(bin_path(prefix), tokens)


def _restore_empty(prefix: Path, dtype: np.dtype, keep: Kept) -> None:
    for path, size in pieces(prefix, dtype, keep):
        with atomic_file(path) as handle:
            handle.truncate(size)  # zeros that take no room, whatever a journal says


def _restore_last_length(path: Path, keep: Kept) -> None:
    """A document that came in pieces may have grown since: its sequence ends where the kept tokens end."""
    tokens, sequences, _ = keep
    if sequences:
        with path.open("r+b") as handle:
            before = np.fromfile(handle, dtype="<i4", count=sequences - 1).sum(dtype=np.int64)
            handle.seek(4 * (sequences - 1))
            handle.write(int(tokens - before).to_bytes(4, "little"))
