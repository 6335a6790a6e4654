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
| raw     | 0-end        | tokens only (nanoGPT's train.bin and val.bin); uint16 unless said        |

``NAME.bos.idx`` beside ``NAME.bin``: int32 positions, counted in tokens, of the first token of each
document that starts in that file; strictly increasing. All numbers are little-endian.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.files import TEMP_SUFFIX, disk_errors_named, fsync_file, publish

MAGIC = 278895051
LEGACY_MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
MAX_SHARD_TOKENS = 2**31 - 1  # the header's count and the index's positions are int32
Layout = Literal["nemo", "legacy", "raw"]

_BUFFER_BYTES = 4 << 20
_log = logging.getLogger(__name__)


def token_dtype(vocab_size: int) -> np.dtype:
    """``uint16`` for up to 65,536 ids (0..65535), else ``uint32``."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of one file are: ``num_tokens`` of ``dtype`` from byte ``offset_bytes`` on."""

    path: Path
    layout: Layout
    dtype: np.dtype
    num_tokens: int
    offset_bytes: int


def inspect_token_file(path: Path | str, *, raw_dtype: str | None = None) -> TokenFile:
    """Read the header of ``path`` and check it against the file's size.

    ``raw_dtype`` (``"uint16"`` or ``"uint32"``) is used for a file without a header only.

    Raises:
        DataError: no such file, an unknown version, or a size that is not what the header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(HEADER_BYTES)
            size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error
    fields = np.frombuffer(head[: len(head) // 4 * 4], dtype="<i4")
    if len(fields) and fields[0] in (MAGIC, LEGACY_MAGIC):
        return _with_header(path, fields, size)
    _refuse_damaged_header(path, head)
    return _without_header(path, size, raw_dtype)


def _with_header(path: Path, fields: np.ndarray, size: int) -> TokenFile:
    layout: Layout = "nemo" if fields[0] == MAGIC else "legacy"
    if len(fields) < HEADER_BYTES // 4:
        raise DataError(
            f"{path} ends inside its header ({size} bytes)", "the writer was stopped; make it again"
        )
    if fields[1] != VERSION:
        raise DataError(
            f"{path} has header version {fields[1]}, expected {VERSION}", "make the file again with this tool"
        )
    bytes_per_token = int(fields[3]) if layout == "nemo" else 2
    if bytes_per_token not in (2, 4):
        raise DataError(
            f"{path} says {bytes_per_token} bytes per token, expected 2 or 4", "the header is damaged"
        )
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
    """A header whose magic was hit still has its shape: version 1 and a thousand zero bytes."""
    if len(head) == HEADER_BYTES and not any(head[16:]) and head[4:8] == VERSION.to_bytes(4, "little"):
        raise DataError(
            f"{path} has a header with an unknown magic number {int.from_bytes(head[:4], 'little')}, "
            f"expected {MAGIC} or {LEGACY_MAGIC}",
            "the file is damaged or of another kind",
        )


def _without_header(path: Path, size: int, raw_dtype: str | None) -> TokenFile:
    dtype = np.dtype(raw_dtype or "uint16").newbyteorder("<")
    if dtype.kind != "u" or dtype.itemsize not in (2, 4):
        raise DataError(f"tokens of type {raw_dtype!r} are not supported", "use uint16 or uint32")
    if size % dtype.itemsize:
        raise DataError(
            f"{path} is {size:,} bytes long, not a whole number of {dtype} tokens",
            "it is no headerless token file, or its copy is incomplete",
        )
    return TokenFile(path, "raw", dtype, size // dtype.itemsize, 0)


class TokenReader:
    """Random access to the tokens of one file, by mmap where possible, else by positional reads.

    ``tokens`` is a read-only array over the mapping, or None when positional reads are used. Can be
    pickled (the file is opened anew), so a loader may carry it into worker processes.
    """

    def __init__(self, file: TokenFile, *, mmap: bool | Literal["auto"] = "auto") -> None:
        self.file = file
        self.num_tokens = file.num_tokens
        self.mmap = mmap
        self.tokens: np.ndarray | None = None
        self._descriptor: int | None = None
        if mmap is False or not self._map():
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)

    def _map(self) -> bool:
        file = self.file
        if file.num_tokens == 0:  # an empty range cannot be mapped
            self.tokens = np.empty(0, file.dtype)
            return True
        try:
            self.tokens = np.memmap(
                file.path, file.dtype, "r", offset=file.offset_bytes, shape=(file.num_tokens,)
            )
        except (OSError, ValueError) as error:
            if self.mmap is True:
                raise DataError(
                    f"cannot memory-map {file.path}: {error}", "set mmap: auto or false"
                ) from error
            _log.warning("cannot memory-map %s (%s); reading it with positional reads", file.path, error)
            return False
        return True

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
            out[:] = self.tokens[start : start + len(out)]
        elif out.dtype == self.file.dtype and out.flags.c_contiguous:
            self._pread(start, out)
        else:
            raw = np.empty(len(out), self.file.dtype)
            self._pread(start, raw)
            out[:] = raw

    def _pread(self, start: int, out: np.ndarray) -> None:
        assert self._descriptor is not None
        view = out.view(np.uint8).data
        offset = self.file.offset_bytes + start * self.file.dtype.itemsize
        while view:
            done = os.preadv(self._descriptor, [view], offset)
            if done == 0:
                raise DataError(f"{self.file.path} ended while it was read", "it was changed; check it")
            view, offset = view[done:], offset + done

    def close(self) -> None:
        """Let go of the file; reading afterwards is an error."""
        self.tokens = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> TokenReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.file, self.mmap)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()


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
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
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
class ShardFacts:
    """What one published shard holds."""

    path: Path
    num_tokens: int
    num_documents: int


class ShardWriter:
    """Writes one token file and its document index; both appear under their names only when whole.

    Tokens go to ``NAME.bin.tmp`` and ``NAME.bos.idx.tmp``; ``close`` puts the count into the header, makes
    both durable and renames them, the index first. ``sync`` makes what was written so far durable and
    ``keep=(tokens, documents)`` of a later writer continues from there, dropping whatever came after.
    """

    def __init__(
        self, path: Path, *, dtype: np.dtype, layout: Layout = "nemo", keep: tuple[int, int] = (0, 0)
    ) -> None:
        self.path = path
        self.index_path = bos_index_path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.layout = layout
        self.num_tokens, self.num_documents = keep
        tokens_bytes, index_bytes = kept_bytes(keep, self.dtype, layout)
        with disk_errors_named(path):
            self._tokens = self._open(path, tokens_bytes)
            self._index = self._open(self.index_path, index_bytes)

    @staticmethod
    def _open(target: Path, keep_bytes: int) -> IO[bytes]:
        """Open the temporary of ``target`` for appending after its first ``keep_bytes``."""
        temporary = target.with_name(target.name + TEMP_SUFFIX)
        if keep_bytes and file_size(temporary) < keep_bytes <= file_size(target):
            shutil.copyfile(target, temporary)  # published after the sync that keep speaks of
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        handle = os.fdopen(descriptor, "r+b", buffering=_BUFFER_BYTES)
        handle.truncate(keep_bytes)  # cuts what is beyond; a fresh file gets zeros where the header goes
        handle.seek(keep_bytes)
        return handle

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
            self._tokens.write(np.ascontiguousarray(tokens).data)
            self._index.write(positions.tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += len(positions)

    def sync(self) -> tuple[int, int]:
        """Make everything written so far durable; ``(tokens, documents)`` to give as ``keep`` later."""
        with disk_errors_named(self.path):
            fsync_file(self._tokens)
            fsync_file(self._index)
        return self.num_tokens, self.num_documents

    def close(self) -> ShardFacts:
        """Publish the shard and its index."""
        with disk_errors_named(self.path):
            if self.layout != "raw":
                self._tokens.seek(0)
                self._tokens.write(header_bytes(self.num_tokens, self.dtype, self.layout))
            for handle, target in ((self._index, self.index_path), (self._tokens, self.path)):
                fsync_file(handle)
                handle.close()
                publish(target.with_name(target.name + TEMP_SUFFIX), target)
        return ShardFacts(self.path, self.num_tokens, self.num_documents)

    def abandon(self, keep: tuple[int, int] = (0, 0)) -> None:
        """Close without publishing, after an error: cut both temporaries back to ``keep`` or remove them."""
        tokens_bytes, index_bytes = kept_bytes(keep, self.dtype, self.layout)
        for handle, target, keep_bytes in (
            (self._tokens, self.path, tokens_bytes),
            (self._index, self.index_path, index_bytes),
        ):
            temporary = target.with_name(target.name + TEMP_SUFFIX)
            _close_quietly(handle)
            if keep[0]:
                os.truncate(temporary, keep_bytes)
            else:
                temporary.unlink(missing_ok=True)


def kept_bytes(keep: tuple[int, int], dtype: np.dtype, layout: Layout) -> tuple[int, int]:
    """Sizes of a token file and its index that hold ``keep`` = (tokens, documents)."""
    offset_bytes = 0 if layout == "raw" else HEADER_BYTES
    return offset_bytes + keep[0] * dtype.itemsize, 4 * keep[1]


def kept_is_there(path: Path, keep: tuple[int, int], dtype: np.dtype, layout: Layout) -> bool:
    """Whether a ``ShardWriter`` for ``path`` can continue from ``keep``: in the temporaries, or published since."""
    for target, size in zip((path, bos_index_path(path)), kept_bytes(keep, dtype, layout), strict=True):
        if max(file_size(target.with_name(target.name + TEMP_SUFFIX)), file_size(target)) < size:
            return False
    return True


def file_size(path: Path) -> int:
    """Bytes of ``path``, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _close_quietly(handle: IO[bytes]) -> None:
    """Close a file whose buffered bytes may have no room on the disk; they are not wanted any more."""
    try:
        handle.close()
    except OSError as error:
        _log.debug("closing a file that is given up: %s", error)


def header_bytes(num_tokens: int, dtype: np.dtype, layout: Layout = "nemo") -> bytes:
    """The 1,024 header bytes of the ``nemo`` or ``legacy`` layout."""
    assert 0 <= num_tokens <= MAX_SHARD_TOKENS
    fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    fields[:3] = (MAGIC if layout == "nemo" else LEGACY_MAGIC, VERSION, num_tokens)
    if layout == "nemo":
        fields[3] = dtype.itemsize
    return fields.tobytes()


def write_token_file(
    path: Path | str,
    tokens: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    dtype: np.dtype | str | None = None,
    layout: Layout = "nemo",
) -> ShardFacts:
    """Publish a whole array as one token file; ``starts`` are the first positions of its documents."""
    chosen = np.dtype(dtype) if dtype is not None else token_dtype(int(tokens.max(initial=0)) + 1)
    writer = ShardWriter(Path(path), dtype=chosen, layout=layout)
    writer.write(tokens.astype(writer.dtype), np.zeros(0) if starts is None else starts)
    return writer.close()


def iter_chunks(reader: TokenReader, tokens_per_chunk: int = 1 << 22) -> Iterator[np.ndarray]:
    """The whole file in order, a few MB at a time, in the file's dtype."""
    for start in range(0, reader.num_tokens, tokens_per_chunk):
        yield reader.read(start, min(tokens_per_chunk, reader.num_tokens - start))
