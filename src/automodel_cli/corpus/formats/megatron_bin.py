"""Megatron-Core's indexed token files, ``PREFIX.bin`` and ``PREFIX.idx``: layout, reader and writer, all here.

``.bin`` is the tokens of all sequences one after another in the index's dtype, no header. ``.idx``, with N
sequences and D - 1 documents, packed (so its numbers are not aligned):

| bytes            | what                                                                                  |
|------------------|---------------------------------------------------------------------------------------|
| 0-8              | magic ``MMIDIDX\\0\\0``                                                                  |
| 9-16             | u64 version 1                                                                         |
| 17               | u8 dtype: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16   |
| 18-25            | u64 N                                                                                 |
| 26-33            | u64 D, entries of the document index (documents + 1)                                  |
| 34-              | i32 x N: length of each sequence, in tokens                                           |
| 34 + 4N -        | i64 x N: where each sequence begins in ``.bin``, in BYTES: the running sum of lengths  |
| 34 + 12N -       | i64 x D: 0, then after each document the number of sequences so far                    |
| 34 + 12N + 8D -  | i8 x N: modes, in multimodal files only (told by the size); read past here             |

All numbers are little-endian. A document is usually one sequence; it may be several (sentences) or none: an
empty document repeats a value of the document index. The index carries no checksum: what can be checked
against the sizes of both files is checked when a file is opened, the rest by ``MegatronIndex.check``.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from automodel_cli.corpus.formats.foreign_files import IDX_MAGIC as MAGIC
from automodel_cli.corpus.formats.nanogpt_bin import TokenFile, has_header
from automodel_cli.corpus.formats.nanogpt_writer import append_tokens
from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.errors import DataError
from automodel_cli.files import (
    GrowingFile,
    atomic_file,
    disk_errors_named,
    file_bytes,
    fsync_folder,
    publish,
    temporary_of,
)
from automodel_cli.plain_text import for_shell
from automodel_cli.storage.cache.remote_file import RemoteObject

VERSION = 1
HEADER_BYTES = 34
MAX_SEQUENCE_TOKENS = 2**31 - 1  # lengths are int32
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_SMALL_VOCABULARY = 65_500  # Megatron's limit, not 65,536: some room for added tokens
_AT_ONCE = 1 << 20  # sequences looked at or written at a time
_SMALL_INDEX_BYTES = 1 << 20  # smaller indices are read, larger ones mapped
_FEW = 6  # sequences that are looked up one by one
_POINTER, _LENGTH = struct.Struct("<q"), struct.Struct("<i")
_REMAKE = "make it again with `automodel preprocess megatron`, or copy both files again"


def token_dtype(vocab_size: int | None) -> np.dtype:
    """Megatron's choice: uint16 for vocabularies below 65,500 ids, int32 for others and where it is unknown."""
    small = vocab_size is not None and vocab_size < _SMALL_VOCABULARY
    return np.dtype("<u2") if small else np.dtype("<i4")


def bin_path(prefix: Path | str) -> Path:
    """``a/b_text_document`` -> ``a/b_text_document.bin``; dots in the name stay."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path | str) -> Path:
    """``a/b_text_document`` -> ``a/b_text_document.idx``."""
    return Path(f"{prefix}.idx")


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class MegatronFile:
    """What the header and the sizes of one pair of files say."""

    prefix: Path
    dtype: np.dtype
    num_sequences: int
    num_documents: int
    num_tokens: int
    remote: RemoteObject | None = None  # where the ``.bin`` is, where that is not on this machine

    @property
    def lengths_offset(self) -> int:
        """Byte of the first length in ``.idx``."""
        return HEADER_BYTES

    @property
    def pointers_offset(self) -> int:
        """Byte of the first pointer in ``.idx``."""
        return HEADER_BYTES + 4 * self.num_sequences

    @property
    def documents_offset(self) -> int:
        """Byte of the document index in ``.idx``."""
        return HEADER_BYTES + 12 * self.num_sequences

    @functools.cached_property
    def idx(self) -> Path:
        """Where the index is."""
        return idx_path(self.prefix)

    @functools.cached_property
    def tokens(self) -> TokenFile:
        """The ``.bin`` as a token file, for ``TokenReader``."""
        return TokenFile(bin_path(self.prefix), "raw", self.dtype, self.num_tokens, 0, remote=self.remote)


def inspect_prefix(prefix: Path | str, remote: RemoteObject | None = None) -> MegatronFile:
    """Read the header of ``PREFIX.idx`` and hold what it says against the sizes of both files.

    Costs a few small reads, however large the files are. ``remote`` is the ``.bin``, where that is not here.

    Raises:
        DataError: a file is missing, is no such index, is cut off, or the two do not belong together.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    try:
        bin_bytes = _regular(data) if remote is None else remote.size
        _regular(index)
        with index.open("rb") as handle:
            head = handle.read(HEADER_BYTES)
            dtype, sequences, entries = _parse_header(index, head)
            _check_index_size(index, os.fstat(handle.fileno()).st_size, sequences, entries)
            file = MegatronFile(Path(prefix), dtype, sequences, entries - 1, bin_bytes // dtype.itemsize, remote)
            _check_edges(handle, file, bin_bytes)
    except OSError as error:
        raise _missing(Path(prefix), index, data, error) from error
    return file


def _regular(path: Path) -> int:
    """The size of a regular file; opening a pipe would wait for its other end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is a folder, pipe or device, expected a file", "check the prefix")
    return found.st_size


def _missing(prefix: Path, index: Path, data: Path, error: OSError) -> DataError:
    """What stands where a pair was expected: a text, a token file with a header, half a pair, nothing."""
    if prefix.is_file():
        output = prefix.name.split(".")[0]
        return DataError(
            f"{prefix} is not the prefix of a .bin and .idx",
            f"of text they are made by automodel preprocess megatron --input {for_shell(prefix)} "
            f"--output-prefix {for_shell(output)} --output-path {for_shell(output + '_megatron')} --append-eod",
        )
    if not data.is_file() or index.exists():
        hint = "check the prefix: it is the path without .bin or .idx"
    elif _has_header(data):
        target = "automodel_cli.data.nanogpt_dataset.NanogptDataset"
        hint = f"{data} is a token file with a header: dataset._target_: {target} reads it, as file_pattern"
    else:
        hint = f"{data.name} is there without its index: its writer was stopped; {_REMAKE}"
    return DataError(f"cannot read {error.filename}: {error.strerror}", hint)


def _has_header(path: Path) -> bool:
    with path.open("rb") as handle:
        return has_header(handle.read(4))


def _parse_header(index: Path, head: bytes) -> tuple[np.dtype, int, int]:
    if head[:9] != MAGIC:
        raise DataError(
            f"{index} does not begin with Megatron's magic {MAGIC!r}, found {head[:9]!r}",
            "it is not a Megatron-Core index (the oldest Megatron and fairseq formats are not read)",
        )
    if len(head) < HEADER_BYTES:
        raise DataError(f"{index} ends inside its header ({len(head)} bytes)", _REMAKE)
    version = int.from_bytes(head[9:17], "little")
    if version != VERSION:
        raise DataError(f"{index} has version {version}, expected {VERSION}", _REMAKE)
    code = head[17]
    if code not in _DTYPES:
        raise DataError(f"{index} has dtype code {code}, expected one of 1-8", "the header is damaged")
    dtype = np.dtype(_DTYPES[code])
    if dtype.kind == "f":
        raise DataError(f"{index} holds {dtype} values, not token ids", "name files of token ids")
    return dtype, int.from_bytes(head[18:26], "little"), int.from_bytes(head[26:34], "little")


def _check_index_size(index: Path, size: int, sequences: int, entries: int) -> None:
    if entries < 1:
        raise DataError(f"{index} has an empty document index; it has one entry at least, 0", _REMAKE)
    expected = HEADER_BYTES + 12 * sequences + 8 * entries
    if size not in (expected, expected + sequences):  # with modes
        raise DataError(
            f"{index} says it lists {sequences:,} sequences and {entries - 1:,} documents ({expected:,} bytes) "
            f"but is {size:,} bytes long",
            f"its writer was stopped or the copy is incomplete; {_REMAKE}",
        )


def _check_edges(handle: IO[bytes], file: MegatronFile, bin_bytes: int) -> None:
    """The first and last values of the index's sections, against each other and the size of ``.bin``."""

    def number(offset: int, width: int) -> int:
        return int.from_bytes(os.pread(handle.fileno(), width, offset), "little", signed=True)

    index, itemsize, last = file.idx, file.dtype.itemsize, file.num_sequences - 1
    bounds = [number(file.documents_offset + 8 * entry, 8) for entry in (0, file.num_documents)]
    if bounds != [0, file.num_sequences]:
        raise DataError(
            f"{index}: documents run from sequence {bounds[0]:,} to {bounds[1]:,}, "
            f"sequences from 0 to {file.num_sequences:,}",
            f"the index is damaged; {_REMAKE}",
        )
    first = end = 0
    if file.num_sequences:
        first = number(file.pointers_offset, 8)
        last_length = number(file.lengths_offset + 4 * last, 4)
        end = number(file.pointers_offset + 8 * last, 8) + last_length * itemsize
    if first != 0 or end % itemsize or end < 0:
        raise DataError(
            f"{index}: sequences lie in bytes {first:,} to {end:,}, not in whole {file.dtype} tokens from 0 on",
            f"the index is damaged; {_REMAKE}",
        )
    if end != bin_bytes:
        raise DataError(
            f"{index} lists {end // itemsize:,} tokens ({end:,} bytes), "
            f"{bin_path(file.prefix)} is {bin_bytes:,} bytes long",
            f"the files are of different runs, or a copy is incomplete; {_REMAKE}",
        )


def tokens_before(file: MegatronFile, sequences: Sequence[int]) -> list[int]:
    """Tokens that lie before each of ``sequences`` (0..N, ascending): pointers lie in order, so a read each tells.

    Raises:
        DataError: a pointer that is not in order, or no whole number of tokens inside ``.bin``.
    """
    found: list[int] = []
    end_bytes = file.tokens.end_bytes
    with file.idx.open("rb") as handle:
        for sequence in sequences:
            if sequence == file.num_sequences:
                found.append(file.num_tokens)
            else:
                raw = os.pread(handle.fileno(), 8, file.pointers_offset + 8 * sequence)
                pointer = int.from_bytes(raw, "little")
                if pointer > end_bytes or pointer % file.dtype.itemsize:
                    raise DataError(
                        f"{file.idx}: sequence {sequence:,} begins at byte {pointer:,}, expected a whole token of the "
                        f"{end_bytes:,} bytes of {bin_path(file.prefix).name}",
                        f"the index is damaged; {_REMAKE}",
                    )
                found.append(pointer // file.dtype.itemsize)
    if found != sorted(found):
        raise DataError(
            f"{file.idx}: the sequences {', '.join(f'{n:,}' for n in sequences)} do not lie in order",
            f"the index is damaged; {_REMAKE}",
        )
    return found


class MegatronIndex:
    """The sections of one ``.idx``. Random access to sequences; whole sections as arrays of their own.

    A large index is mapped (which keeps a file descriptor), a small one read.
    """

    def __init__(self, file: MegatronFile) -> None:
        self.file = file
        path = idx_path(file.prefix)
        whole = file.documents_offset + 8 * (file.num_documents + 1)
        self.watched = WatchedFile(path, whole)  # ask it before a large index is looked at
        raw = self.watched.map() if whole > _SMALL_INDEX_BYTES else self.watched.read()
        # Rows of bytes: the numbers are not aligned, and numpy copies a whole unaligned array to take from it.
        self._lengths = self._rows(raw, file.lengths_offset, file.num_sequences, 4)
        self._pointers = self._rows(raw, file.pointers_offset, file.num_sequences, 8)
        self._documents = self._rows(raw, file.documents_offset, file.num_documents + 1, 8)
        self._raw = raw.data

    @staticmethod
    def _rows(raw: np.ndarray, offset: int, count: int, width: int) -> np.ndarray:
        return raw[offset : offset + count * width].reshape(count, width)

    def lengths(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Lengths of sequences ``begin`` to ``end`` in tokens, int32, a copy."""
        return self._lengths[begin:end].copy().view("<i4").ravel()

    def document_bounds(self) -> np.ndarray:
        """The document index, int64 ``[documents + 1]``, a copy."""
        return self._documents.copy().view("<i8").ravel()

    def locate(self, sequences: np.ndarray) -> tuple[list[int], list[int]]:
        """(first tokens in ``.bin``, lengths) of ``sequences``."""
        itemsize = self.file.dtype.itemsize
        if len(sequences) <= _FEW:  # whole arrays cost more to set up
            numbers, first = sequences.tolist(), self.file.pointers_offset
            starts = [_POINTER.unpack_from(self._raw, first + 8 * n)[0] // itemsize for n in numbers]
            return starts, [_LENGTH.unpack_from(self._raw, HEADER_BYTES + 4 * n)[0] for n in numbers]
        pointers = self._pointers.take(sequences, axis=0).view("<i8").ravel()
        lengths = self._lengths.take(sequences, axis=0).view("<i4").ravel()
        return (pointers // itemsize).tolist(), lengths.tolist()

    def documents_between(self, first: int, end: int) -> list[tuple[int, int]]:
        """(number, first token in ``.bin``) of the documents that tokens ``first`` to ``end`` are of; a few reads."""

        def pointer(sequence: int) -> int:
            past_the_last = sequence == self.file.num_sequences
            return self.file.tokens.num_tokens if past_the_last else self.locate(np.array([sequence]))[0][0]

        def bound(document: int) -> int:
            return int(self._documents[document].view("<i8")[0])

        bounds = range(self.file.num_documents + 1)
        begin, last = (bisect_right(bounds, at, key=lambda n: pointer(bound(n))) - 1 for at in (first, end - 1))
        found = [(number, pointer(bound(number))) for number in range(max(begin, 0), last + 1)]
        after = [start for _, start in found[1:]] + [end]
        return [one for one, following in zip(found, after, strict=True) if one[1] < following]

    def check(self) -> None:
        """Check every length, pointer and document boundary; a second for some 100M sequences.

        Raises:
            DataError: naming the first that is wrong.
        """
        name, expected = idx_path(self.file.prefix), 0
        for first, lengths, pointers in self._runs():
            begins = np.cumsum(lengths, dtype=np.int64)
            begins *= self.file.dtype.itemsize
            ends, begins = begins + expected, np.concatenate(([0], begins[:-1])) + expected
            wrong = np.flatnonzero((lengths < 0) | (pointers != begins))
            if len(wrong):
                at = int(wrong[0])
                raise DataError(
                    f"{name}: sequence {first + at:,} has length {lengths[at]:,} and begins at byte "
                    f"{pointers[at]:,}, expected {begins[at]:,}",
                    f"the index is damaged; {_REMAKE}",
                )
            expected = int(ends[-1])
        self._check_documents()

    def _runs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for first in range(0, self.file.num_sequences, _AT_ONCE):
            pointers = self._pointers[first : first + _AT_ONCE].copy().view("<i8").ravel()
            yield first, self.lengths(first, first + _AT_ONCE), pointers

    def _check_documents(self) -> None:
        bounds = self.document_bounds()
        back = np.flatnonzero(np.diff(bounds) < 0)
        if len(back):
            at = int(back[0])
            raise DataError(
                f"{idx_path(self.file.prefix)}: document {at:,} ends at sequence {bounds[at + 1]:,}, "
                f"before its beginning at {bounds[at]:,}",
                f"the index is damaged; {_REMAKE}",
            )


# ------------------------------------------------------------------------------------------- writing

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
        assert self.dtype in _CODES and self.dtype.kind in "ui", f"{dtype} is no dtype of token ids"
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


def header_bytes(dtype: np.dtype, num_sequences: int, document_entries: int) -> bytes:
    """The first 34 bytes of an ``.idx``."""
    counts = (VERSION.to_bytes(8, "little"), bytes([_CODES[np.dtype(dtype)]]))
    return b"".join((MAGIC, *counts, num_sequences.to_bytes(8, "little"), document_entries.to_bytes(8, "little")))


# ---------------------------------------------------------------------------------------- going on
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
