"""Writes Megatron's pairs of ``.bin`` and ``.idx``, in pieces that outlive a killed process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.megatron_bin import (
    DTYPE_CODES,
    MegatronFile,
    bin_path,
    header_bytes,
    idx_path,
    inspect_prefix,
)
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.nanogpt_writer import append_tokens
from automodel_cli.errors import DataError
from automodel_cli.files import atomic_file, disk_errors_named, file_bytes, fsync_folder, publish, temporary_of

_AT_ONCE = 1 << 20  # sequences written at a time
MAX_SEQUENCE_TOKENS = 2**31 - 1  # lengths are int32
Synced = tuple[int, int, int]  # tokens, sequences, documents


class MegatronWriter:
    """Writes one pair of files; both appear under their names only when whole, the index last.

    Tokens go to ``PREFIX.bin.tmp``, lengths and document sizes to two more temporaries, so memory does not grow
    with the data. ``close`` makes the index of them and publishes both; an index that was there before is
    removed first, so that no index ever stands beside tokens of another run. ``sync`` makes what was written so
    far durable, and ``synced`` of a later writer continues from there, dropping whatever came after.
    """

    def __init__(self, prefix: Path | str, *, dtype: np.dtype, synced: Synced = (0, 0, 0)) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in DTYPE_CODES and self.dtype.kind in "ui", f"{dtype} is no dtype of token ids"
        self.num_tokens, self.num_sequences, self.num_documents = synced
        with disk_errors_named(bin_path(prefix)):
            files = [GrowingFile(path, size) for path, size in pieces(self.prefix, self.dtype, synced)]
        self._bin, self._lengths, self._sizes = self._pieces = files

    def write(self, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray | None = None) -> None:
        """Append whole sequences.

        Args:
            tokens: their ids one after another, in the writer's dtype.
            lengths: of each sequence; their sum is ``len(tokens)``.
            sizes: sequences of each document (0 for an empty one); left out, each sequence is a document.

        Raises:
            DataError: a sequence is longer than the format can say.
        """
        assert tokens.dtype == self.dtype, f"tokens are {tokens.dtype}, the file holds {self.dtype}"
        assert int(np.sum(lengths, dtype=np.int64)) == len(tokens), "lengths do not add up to the tokens"
        assert sizes is None or int(np.sum(sizes)) == len(lengths), "sizes do not add up to the sequences"
        self._refuse_long(int(np.max(lengths, initial=0)))
        sizes = np.ones(len(lengths), dtype="<i4") if sizes is None else np.asarray(sizes).astype("<i4")
        with disk_errors_named(bin_path(self.prefix)):
            self._put(tokens)
            self._lengths.handle.write(np.asarray(lengths).astype("<i4").data)
            self._sizes.handle.write(sizes.data)
        self.num_tokens += len(tokens)
        self.num_sequences += len(lengths)
        self.num_documents += len(sizes)

    def extend(self, tokens: np.ndarray) -> None:
        """Append ``tokens`` to the last sequence, of a document that arrives in pieces.

        Raises:
            DataError: it becomes longer than the format can say.
        """
        assert self.num_sequences and tokens.dtype == self.dtype
        at, lengths = 4 * (self.num_sequences - 1), self._lengths.handle
        with disk_errors_named(bin_path(self.prefix)):
            lengths.seek(at)
            length = int.from_bytes(lengths.read(4), "little") + len(tokens)
            self._refuse_long(length)
            lengths.seek(at)
            lengths.write(length.to_bytes(4, "little"))
            self._put(tokens)
        self.num_tokens += len(tokens)

    def _put(self, tokens: np.ndarray) -> None:
        append_tokens(self._bin, tokens)

    def _refuse_long(self, length: int) -> None:
        if length > MAX_SEQUENCE_TOKENS:
            raise DataError(
                f"a sequence of {length:,} tokens does not fit the index of {self.prefix}",
                f"cut the text into documents of at most {MAX_SEQUENCE_TOKENS:,} tokens",
            )

    def sync(self) -> Synced:
        """Make everything written so far durable; what to give as ``synced`` later."""
        with disk_errors_named(bin_path(self.prefix)):
            for file in self._pieces:
                file.sync()
        return self.num_tokens, self.num_sequences, self.num_documents

    def close(self) -> MegatronFile:
        """Publish both files, the index last."""
        self._publish()
        return inspect_prefix(self.prefix)

    def _publish(self) -> None:
        index = GrowingFile(idx_path(self.prefix))
        with disk_errors_named(index.target):
            self._bin.sync()  # the other temporaries are not needed once the index is there
            self._write_index(index.handle)
            index.sync()
            if index.target.exists():
                index.target.unlink()
                fsync_folder(index.target.parent)
            self._bin.publish()
            index.publish()
            for file in (self._lengths, self._sizes):
                file.abandon()

    def _write_index(self, out: IO[bytes]) -> None:
        out.write(header_bytes(self.dtype, self.num_sequences, self.num_documents + 1))
        for lengths in _read_back(self._lengths.handle, self.num_sequences):
            out.write(lengths.data)
        end = 0
        for lengths in _read_back(self._lengths.handle, self.num_sequences):
            ends = end + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            out.write(np.concatenate(([end], ends[:-1])).astype("<i8").data)
            end = int(ends[-1])
        out.write((0).to_bytes(8, "little"))
        done = 0
        for sizes in _read_back(self._sizes.handle, self.num_documents):
            bounds = done + np.cumsum(sizes, dtype="<i8")
            out.write(bounds.data)
            done = int(bounds[-1])

    def abandon(self, synced: Synced = (0, 0, 0)) -> None:
        """Close without publishing, after an error: cut the temporaries back to ``synced`` or remove them."""
        for file, (_, size) in zip(self._pieces, pieces(self.prefix, self.dtype, synced), strict=True):
            file.abandon(size)
        temporary_of(idx_path(self.prefix)).unlink(missing_ok=True)


def pieces(prefix: Path, dtype: np.dtype, synced: Synced) -> list[tuple[Path, int]]:
    """What a writer has temporaries of (tokens, lengths, document sizes), and their bytes at ``synced``."""
    tokens, sequences, documents = synced
    return [
        (bin_path(prefix), tokens * dtype.itemsize),
        (Path(f"{prefix}.idx.lengths"), 4 * sequences),
        (Path(f"{prefix}.idx.documents"), 4 * documents),
    ]


def can_continue(prefix: Path | str, dtype: np.dtype, synced: Synced) -> bool:
    """Whether a writer's temporaries are there with at least what ``synced`` speaks of."""
    found = pieces(Path(prefix), np.dtype(dtype), synced)
    return all(temporary_of(path).is_file() and file_bytes(temporary_of(path)) >= size for path, size in found)


def _read_back(handle: IO[bytes], count: int) -> Iterator[np.ndarray]:
    """The ``count`` int32 numbers of a temporary from its beginning, some at a time."""
    handle.seek(0)
    for first in range(0, count, _AT_ONCE):
        yield np.frombuffer(handle.read(4 * min(_AT_ONCE, count - first)), dtype="<i4")


# A journal says how much of a writer's temporaries counts (``Synced``). The interruption may also have come while the
# pair was being published, or just after, before the journal knew: then the pair is taken back, which is two renames
# and, at most, the index read once.


def can_reopen(prefix: Path, dtype: np.dtype, synced: Synced) -> bool:
    """Whether ``synced`` of this pair is there, as temporaries or published."""
    if can_continue(prefix, dtype, synced) or synced[:2] == (0, 0):
        return True
    if idx_path(prefix).exists():
        try:
            file = inspect_prefix(prefix)
        except DataError:
            return False
        found = (file.num_tokens, file.num_sequences, file.num_documents)
        return file.dtype == dtype and all(have >= want for have, want in zip(found, synced, strict=True))
    (tokens, size), *rest = pieces(prefix, dtype, synced)
    there = [(tokens, size), *((temporary_of(path), size) for path, size in rest)]
    return all(path.is_file() and file_bytes(path) >= size for path, size in there)


def reopen(prefix: Path, dtype: np.dtype, synced: Synced) -> None:
    """Make the temporaries such that ``MegatronWriter(prefix, synced=synced)`` goes on with them.

    Only where ``can_reopen`` says so. May itself be interrupted and repeated.
    """
    if not can_continue(prefix, dtype, synced):
        if synced[:2] == (0, 0):  # empty documents alone: nothing but their number is needed
            _restore_empty(prefix, dtype, synced)
            return
        _take_back(prefix, dtype)
    _restore_last_length(temporary_of(pieces(prefix, dtype, synced)[1][0]), synced)


def _take_back(prefix: Path, dtype: np.dtype) -> None:
    """Turn a published, or half published, pair into temporaries again."""
    (tokens, _), (lengths, _), (sizes, _) = pieces(prefix, dtype, (0, 0, 0))
    if idx_path(prefix).exists():
        index = MegatronIndex(inspect_prefix(prefix))
        for path, values in ((lengths, index.lengths()), (sizes, np.diff(index.document_bounds()))):
            with atomic_file(temporary_of(path)) as handle:
                handle.write(values.astype("<i4").data)
        idx_path(prefix).unlink()
        fsync_folder(prefix.parent)
    if bin_path(prefix).exists():
        publish(tokens, temporary_of(tokens))


def _restore_empty(prefix: Path, dtype: np.dtype, synced: Synced) -> None:
    for path, size in pieces(prefix, dtype, synced):
        with atomic_file(temporary_of(path)) as handle:
            handle.truncate(size)  # zeros that take no room, whatever a journal says


def _restore_last_length(path: Path, synced: Synced) -> None:
    """A document that came in pieces may have grown since: its sequence ends where the synced tokens end."""
    tokens, sequences, _ = synced
    if sequences:
        with path.open("r+b") as handle:
            before = np.fromfile(handle, dtype="<i4", count=sequences - 1).sum(dtype=np.int64)
            handle.seek(4 * (sequences - 1))
            handle.write(int(tokens - before).to_bytes(4, "little"))
