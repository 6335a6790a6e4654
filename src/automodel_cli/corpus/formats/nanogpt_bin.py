"""Token files for nanoGPT-style training: their layouts, and what a file says of itself.

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

All numbers are little-endian. Read by ``token_reader``, written by ``nanogpt_writer``; ``NAME.bos.idx`` beside
``NAME.bin`` (``bos_index``) says where documents begin.
"""

from __future__ import annotations

import functools
import io
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from automodel_cli.corpus.formats.foreign_files import (
    NPY_MAGIC,
    ReadAt,
    dtype_beside,
    refuse_foreign,
    refuse_implausible,
)
from automodel_cli.errors import DataError
from automodel_cli.storage.cache.remote_file import RemoteFile, RemoteObject

MAGIC = 278895051
LEGACY_MAGIC = 20240520
LLAMA3_MAGIC = 20240801
VERSION = 1
LLAMA3_VERSION = 7
HEADER_BYTES = 1024
MAX_SHARD_TOKENS = 2**31 - 1  # the header's count and the index's positions are int32
Layout = Literal["nemo", "legacy", "llama3", "raw", "npy"]
RAW_DTYPES = ("uint16", "uint32", "npy")  # what ``raw_dtype`` may be
_NPY_HEADER_BYTES = 1 << 16  # NumPy's own limit for headers that it evaluates is 10,000 characters


def token_dtype(vocab_size: int) -> np.dtype:
    """``uint16`` for up to 65,536 ids (0..65535), else ``uint32``."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of one file are: ``num_tokens`` of ``dtype`` from byte ``offset_bytes`` on.

    ``assumed``: nothing says that they are of this type; a headerless file is uint16 unless told otherwise.
    ``remote``: where the bytes are, where that is not on this machine; ``path`` then only shows it.
    """

    path: Path
    layout: Layout
    dtype: np.dtype
    num_tokens: int
    offset_bytes: int
    assumed: bool = False
    remote: RemoteObject | None = None

    @property
    def name(self) -> str:
        """What it is called in messages: its path, or its URL."""
        return str(self.path) if self.remote is None else self.remote.url

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
        return _inspect(path, functools.partial(os.pread, descriptor), found.st_size, raw_dtype)
    finally:
        os.close(descriptor)


def inspect_remote_token_file(path: Path, remote: RemoteObject, *, raw_dtype: str | None = None) -> TokenFile:
    """As :func:`inspect_token_file`, of a file that ``path`` only shows. What is read was best staged before.

    Raises:
        DataError: as there.
    """
    source = RemoteFile(remote)

    def read(count: int, start: int) -> bytes:
        found = bytearray(max(min(count, remote.size - start), 0))
        source.read_into(start, memoryview(found))
        return bytes(found)

    try:
        return replace(_inspect(path, read, remote.size, raw_dtype), remote=remote)
    except DataError as error:
        raise DataError(*(text.replace(str(path), remote.url) for text in (error.message, error.hint))) from None


def _inspect(path: Path, read: ReadAt, size: int, raw_dtype: str | None) -> TokenFile:
    head = read(HEADER_BYTES, 0)
    fields = np.frombuffer(head[: len(head) // 4 * 4], dtype="<i4")
    if has_header(head):
        return _with_header(path, fields, size)
    if head.startswith(NPY_MAGIC):
        return _numpy_array(path, read(_NPY_HEADER_BYTES, 0), size, raw_dtype)
    refuse_foreign(path, head, size)
    _refuse_damaged_header(path, head)
    return _without_header(path, read, size, raw_dtype)


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


def _without_header(path: Path, read: ReadAt, size: int, raw_dtype: str | None) -> TokenFile:
    if raw_dtype == "npy":
        raise DataError(f"{path} is not a .npy file", "leave raw_dtype out, or say uint16 or uint32")
    told = np.dtype(raw_dtype).newbyteorder("<") if raw_dtype is not None else dtype_beside(path)
    if told is None:
        refuse_implausible(path, read, size)
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


def header_bytes(num_tokens: int, dtype: np.dtype, layout: Layout = "nemo") -> bytes:
    """The 1,024 header bytes of the ``nemo`` or ``legacy`` layout."""
    assert 0 <= num_tokens <= MAX_SHARD_TOKENS
    fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    fields[:3] = (MAGIC if layout == "nemo" else LEGACY_MAGIC, VERSION, num_tokens)
    if layout == "nemo":
        fields[3] = dtype.itemsize
    return fields.tobytes()
