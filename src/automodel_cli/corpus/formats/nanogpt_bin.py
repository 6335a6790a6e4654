"""Token files for nanoGPT-style training: layouts, reader, writer and document index, all here.

| layout  | bytes        | what                                                                     |
|---------|--------------|--------------------------------------------------------------------------|
| nemo    | 0-3          | int32 magic 278895051                                                    |
|         | 4-7          | int32 version 1                                                          |
|         | 8-11         | int32 number of tokens (so at most 2**31 - 1 in one file)                |
|         | 12-15        | int32 bytes per token: 2 (uint16) or 4 (uint32)                          |
|         | 16-1023      | zeros                                                                    |
|         | 1024-end     | tokens                                                                   |
| legacy  | 0-3          | int32 magic 20240520; then version and count as above; always uint16     |
| llama3  | 0-3          | int32 magic 20240801 (llm.c's for Llama 3), version 7, count; uint32     |
| raw     | 0-end        | tokens only (nanoGPT's train.bin and val.bin); uint16 unless said        |
| npy     | 0-           | NumPy's format: one row of integers; read where raw_dtype allows it      |

``NAME.bos.idx`` beside ``NAME.bin``: int32 positions, counted in tokens, of the first token of each
document that starts in that file; strictly increasing. All numbers are little-endian.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automodel_cli.corpus.formats.foreign_files import (
    NPY_MAGIC,
    dtype_beside,
    refuse_foreign,
    refuse_implausible,
)
from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.errors import DataError
from automodel_cli.files import GrowingFile, disk_errors_named, file_bytes, hash_bytes, temporary_of
from automodel_cli.json_files import read_bytes

MAGIC = 278895051
LEGACY_MAGIC = 20240520
LLAMA3_MAGIC = 20240801
VERSION = 1
LLAMA3_VERSION = 7
HEADER_BYTES = 1024
MAX_SHARD_TOKENS = 2**31 - 1  # the header's count and the index's positions are int32
Layout = Literal["nemo", "legacy", "llama3", "raw", "npy"]
RAW_DTYPES = ("uint16", "uint32", "npy")  # what ``raw_dtype`` may be

_SAMPLE_BYTES = 4096
_MAX_INDEX_BYTES = 4 * MAX_SHARD_TOKENS  # a document has a token at least
_NPY_HEADER_BYTES = 1 << 16  # NumPy's own limit for headers that it evaluates is 10,000 characters
_log = logging.getLogger(__name__)


def token_dtype(vocab_size: int) -> np.dtype:
    """``uint16`` for up to 65,536 ids (0..65535), else ``uint32``."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of one file are: ``num_tokens`` of ``dtype`` from byte ``offset_bytes`` on.

    ``assumed``: nothing says that they are of this type; a headerless file is uint16 unless told otherwise.
    """

    path: Path
    layout: Layout
    dtype: np.dtype
    num_tokens: int
    offset_bytes: int
    assumed: bool = False

    @property
    def end_bytes(self) -> int:
        """Where the last token ends: the size that the file must have at least."""
        return self.offset_bytes + self.num_tokens * self.dtype.itemsize


def inspect_token_file(path: Path | str, *, raw_dtype: str | None = None) -> TokenFile:
    """Read the header of ``path`` and check it against the file's size; look at the bytes of one without a header.

    ``raw_dtype`` (one of ``RAW_DTYPES``) is used for a file without a token file's header only, and believed. A
    ``.npy`` file is read where it is "npy" or the type of its numbers.

    Raises:
        DataError: no such file, an unknown version, a size that is not what the header says, or a file that holds
            something else than ids.
    """
    path = Path(path)
    if raw_dtype not in (None, *RAW_DTYPES):
        raise DataError(f"tokens of type {raw_dtype!r} are not supported", f"use {', '.join(RAW_DTYPES)}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {path}: {reason}", "check the path") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is a folder, pipe or device, expected a token file", "check the path")
        return _inspect(path, descriptor, found.st_size, raw_dtype)
    finally:
        os.close(descriptor)


def _inspect(path: Path, descriptor: int, size: int, raw_dtype: str | None) -> TokenFile:
    head = os.pread(descriptor, HEADER_BYTES, 0)
    fields = np.frombuffer(head[: len(head) // 4 * 4], dtype="<i4")
    if has_header(head):
        return _with_header(path, fields, size)
    if head.startswith(NPY_MAGIC):
        return _numpy_array(path, os.pread(descriptor, _NPY_HEADER_BYTES, 0), size, raw_dtype)
    refuse_foreign(path, head, size)
    _refuse_damaged_header(path, head)
    return _without_header(path, descriptor, size, raw_dtype)


_HEADERS: dict[int, tuple[Layout, int]] = {
    MAGIC: ("nemo", VERSION),
    LEGACY_MAGIC: ("legacy", VERSION),
    LLAMA3_MAGIC: ("llama3", LLAMA3_VERSION),
}


def has_header(head: bytes) -> bool:
    """Whether a file that begins so is one of those with a header."""
    return len(head) >= 4 and int.from_bytes(head[:4], "little") in _HEADERS


def _with_header(path: Path, fields: np.ndarray, size: int) -> TokenFile:
    layout, version = _HEADERS[int(fields[0])]
    if len(fields) < HEADER_BYTES // 4:
        raise DataError(f"{path} ends inside its header ({size} bytes)", "the writer was stopped; make it again")
    if fields[1] != version:
        raise DataError(
            f"{path} has header version {fields[1]}, expected {version}", "make the file again with this tool"
        )
    bytes_per_token = {"nemo": int(fields[3]), "llama3": 4}.get(layout, 2)
    if bytes_per_token not in (2, 4):
        raise DataError(f"{path} says {bytes_per_token} bytes per token, expected 2 or 4", "the header is damaged")
    num_tokens = int(fields[2])
    expected = HEADER_BYTES + num_tokens * bytes_per_token
    if num_tokens < 0 or size != expected:
        found = (size - HEADER_BYTES) / bytes_per_token
        raise DataError(
            f"{path} says it holds {num_tokens:,} tokens ({expected:,} bytes) but is {size:,} bytes long, "
            f"room for {found:,.10g} tokens",
            "the writer was stopped or the copy is incomplete; make or copy it again",
        )
    return TokenFile(path, layout, np.dtype(f"<u{bytes_per_token}"), num_tokens, HEADER_BYTES)


def _refuse_damaged_header(path: Path, head: bytes) -> None:
    """A header whose magic was hit still has its shape: a version and a thousand zero bytes."""
    version = int.from_bytes(head[4:8], "little")
    if len(head) == HEADER_BYTES and not any(head[16:]) and version in (VERSION, LLAMA3_VERSION):
        raise DataError(
            f"{path} has a header with an unknown magic number {int.from_bytes(head[:4], 'little')}, "
            f"expected {MAGIC}, {LEGACY_MAGIC} or {LLAMA3_MAGIC}",
            "the file is damaged or of another kind",
        )


def _without_header(path: Path, descriptor: int, size: int, raw_dtype: str | None) -> TokenFile:
    if raw_dtype == "npy":
        raise DataError(f"{path} is not a .npy file", "leave raw_dtype out, or say uint16 or uint32")
    told = np.dtype(raw_dtype).newbyteorder("<") if raw_dtype is not None else dtype_beside(path)
    if told is None:
        refuse_implausible(path, descriptor, size)
    dtype = np.dtype("<u2") if told is None else told
    if size % dtype.itemsize:
        raise DataError(
            f"{path} is {size:,} bytes long, not a whole number of {dtype} tokens",
            "it is not a headerless token file, or its copy is incomplete",
        )
    return TokenFile(path, "raw", dtype, size // dtype.itemsize, 0, assumed=told is None)


def _numpy_array(path: Path, head: bytes, size: int, raw_dtype: str | None) -> TokenFile:
    """A ``.npy`` file of ids. Any array could be meant by its numbers, so that someone has to say that they are ids."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = reader(stream)
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise DataError(f"{path} is a damaged .npy file: {error}", "save the array again") from None
    if dtype.kind not in "ui" or not dtype.isnative or len(shape) != 1:
        raise DataError(
            f"{path} is a .npy file of {dtype} {list(shape)}, expected one row of integers", "save such a row"
        )
    ids = np.dtype(f"<u{dtype.itemsize}")  # a negative one is then beyond every vocabulary
    found = TokenFile(path, "npy", ids, shape[0], stream.tell())
    if size != found.end_bytes:
        raise DataError(
            f"{path} says it holds {shape[0]:,} {dtype} numbers ({found.end_bytes:,} bytes) but is {size:,} bytes long",
            "its copy is incomplete; save the array again",
        )
    if raw_dtype not in ("npy", dtype.name):
        raise DataError(
            f"{path} is a .npy file of {shape[0]:,} {dtype} numbers, expected a token file",
            "if they are token ids, say so: raw_dtype: npy",
        )
    return found


def _sample_hash(watched: WatchedFile) -> str:
    """Of the head, the middle and the tail."""
    count = min(_SAMPLE_BYTES, watched.num_bytes)
    starts = (0, (watched.num_bytes - count) // 2, watched.num_bytes - count)
    return hash_bytes(b"".join(os.pread(watched.descriptor, count, start) for start in starts))


class TokenReader:
    """Random access to the tokens of one file, by mmap where possible, else by positional reads.

    ``tokens`` is a read-only array over the mapping, or None when positional reads are used; call ``check`` before
    using it. Can be pickled (the file is opened anew), so a loader may carry it into worker processes.
    """

    def __init__(self, file: TokenFile, *, mmap: bool | Literal["auto"] = "auto") -> None:
        self.file = file
        self.num_tokens = file.num_tokens
        self.mmap = mmap
        self.tokens: np.ndarray | None = None
        self._watched = WatchedFile(file.path, file.end_bytes, fingerprint=_sample_hash)
        self.check = self._watched.check
        if mmap is not False:
            self.tokens = self._map()

    def _map(self) -> np.ndarray | None:
        file = self.file
        try:
            return self._watched.map()[file.offset_bytes :].view(file.dtype)
        except (OSError, ValueError) as error:
            if self.mmap is True:
                raise DataError(f"cannot memory-map {file.path}: {error}", "set mmap: auto or false") from error
            _log.warning("cannot memory-map %s (%s); reading it with positional reads", file.path, error)
            return None

    def read(self, start: int, count: int) -> np.ndarray:
        """A copy of ``count`` tokens from position ``start``, in the file's dtype."""
        out = np.empty(count, self.file.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill the one-dimensional integer array ``out`` with the tokens from position ``start`` on.

        Raises:
            DataError: the range is not inside the file, or the file became shorter.
        """
        if start < 0 or start + len(out) > self.num_tokens:
            raise DataError(
                f"tokens {start}..{start + len(out)} asked of {self.file.path}, which has {self.num_tokens}"
            )
        if self.tokens is not None:
            self.check()
            out[:] = self.tokens[start : start + len(out)]
        elif out.dtype == self.file.dtype and out.flags.c_contiguous:
            self.read_bytes(start, out.view(np.uint8).data)
        else:
            raw = np.empty(len(out), self.file.dtype)
            self.read_bytes(start, raw.view(np.uint8).data)
            out[:] = raw

    def read_bytes(self, start: int, view: memoryview) -> None:
        """Fill ``view``, of bytes, with the tokens from position ``start`` on, by a positional read.

        Raises:
            DataError: the file became shorter.
        """
        offset = self.file.offset_bytes + start * self.file.dtype.itemsize
        while (done := os.preadv(self._watched.descriptor, (view,), offset)) < len(view):
            if done == 0:
                raise DataError(f"{self.file.path} ended while it was read", "it was changed; check it")
            view, offset = view[done:], offset + done

    def close(self) -> None:
        """Let go of the file; reading afterwards is an error."""
        self.tokens = None
        self._watched.close()

    def __enter__(self) -> TokenReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.file, self.mmap)


def _reopen(file: TokenFile, mmap: bool | Literal["auto"]) -> TokenReader:
    return TokenReader(file, mmap=mmap)


# ------------------------------------------------------------------------------------ document index


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


# ------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class ShardInfo:
    """What one published shard holds."""

    path: Path
    num_tokens: int
    num_documents: int


class ShardWriter:
    """Writes one token file and its document index; both appear under their names only when whole.

    Tokens go to ``NAME.bin.tmp`` and ``NAME.bos.idx.tmp``; ``close`` puts the count into the header, makes
    both durable and renames them, the index first. ``sync`` makes what was written so far durable and
    ``synced=(tokens, documents)`` of a later writer continues from there, dropping whatever came after.
    """

    def __init__(
        self, path: Path, *, dtype: np.dtype, layout: Layout = "nemo", synced: tuple[int, int] = (0, 0)
    ) -> None:
        self.path = path
        self.index_path = bos_index_path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.layout = layout
        self.num_tokens, self.num_documents = synced
        targets = (path, self.index_path)
        with disk_errors_named(path):
            self._tokens, self._index = map(GrowingFile, targets, synced_sizes(synced, self.dtype, layout))

    @property
    def room(self) -> int:
        """Tokens that still fit under the format's own limit."""
        return MAX_SHARD_TOKENS - self.num_tokens

    def write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Append ``tokens``; ``starts`` are the offsets into ``tokens`` at which documents begin."""
        assert len(tokens) <= self.room, "the caller rolls to the next shard before int32 overflows"
        assert tokens.dtype == self.dtype, f"tokens are {tokens.dtype}, the file holds {self.dtype}"
        positions = (np.asarray(starts, dtype=np.int64) + self.num_tokens).astype("<i4")
        with disk_errors_named(self.path):
            self._put(tokens)
            self._index.handle.write(positions.tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += len(positions)

    def _put(self, tokens: np.ndarray) -> None:
        self._tokens.handle.write(np.ascontiguousarray(tokens).data)

    def sync(self) -> tuple[int, int]:
        """Make everything written so far durable; ``(tokens, documents)`` to give as ``synced`` later."""
        with disk_errors_named(self.path):
            self._tokens.sync()
            self._index.sync()
        return self.num_tokens, self.num_documents

    def close(self) -> ShardInfo:
        """Publish the shard and its index."""
        with disk_errors_named(self.path):
            if self.layout != "raw":
                self._tokens.handle.seek(0)
                self._tokens.handle.write(header_bytes(self.num_tokens, self.dtype, self.layout))
            self._index.publish()
            self._tokens.publish()
        return ShardInfo(self.path, self.num_tokens, self.num_documents)

    def abandon(self, synced: tuple[int, int] = (0, 0)) -> None:
        """Close without publishing, after an error: cut both temporaries back to ``synced`` or remove them."""
        sizes = synced_sizes(synced, self.dtype, self.layout) if synced[0] else (0, 0)
        for file, size in zip((self._tokens, self._index), sizes, strict=True):
            file.abandon(size)


def synced_sizes(synced: tuple[int, int], dtype: np.dtype, layout: Layout) -> tuple[int, int]:
    """Sizes of a token file and its index that hold ``synced`` = (tokens, documents)."""
    offset_bytes = 0 if layout == "raw" else HEADER_BYTES
    return offset_bytes + synced[0] * dtype.itemsize, 4 * synced[1]


def synced_is_there(path: Path, synced: tuple[int, int], dtype: np.dtype, layout: Layout) -> bool:
    """Whether a ``ShardWriter`` for ``path`` can continue from ``synced``: in the temporaries, or published since."""
    for target, size in zip((path, bos_index_path(path)), synced_sizes(synced, dtype, layout), strict=True):
        if max(file_bytes(temporary_of(target)), file_bytes(target)) < size:
            return False
    return True


def header_bytes(num_tokens: int, dtype: np.dtype, layout: Layout = "nemo") -> bytes:
    """The 1,024 header bytes of the ``nemo`` or ``legacy`` layout."""
    assert 0 <= num_tokens <= MAX_SHARD_TOKENS
    fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    fields[:3] = (MAGIC if layout == "nemo" else LEGACY_MAGIC, VERSION, num_tokens)
    if layout == "nemo":
        fields[3] = dtype.itemsize
    return fields.tobytes()


def iter_blocks(reader: TokenReader, tokens_per_block: int = 1 << 22) -> Iterator[np.ndarray]:
    """The whole file in order, a few MB at a time, in the file's dtype."""
    for start in range(0, reader.num_tokens, tokens_per_block):
        yield reader.read(start, min(tokens_per_block, reader.num_tokens - start))
