"""The bytes of a ``.safetensors`` file, without torch: header in and out, tensors as numpy arrays.

    offset   bytes  content
    0        8      N, the length of the header, unsigned little-endian; N <= 100,000,000
    8        N      JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}},
                    padded with spaces so that 8 + N is a multiple of 8
    8 + N    ...    tensors, row-major, little-endian, back to back in the order of their offsets,
                    wide element types first so that each one is aligned

A file that holds one rank's part of larger tensors says where each part begins in
``__metadata__["DCP_SHARDING_INFO"]``: JSON ``{name: {"saved_offsets": [...]}}``, the convention of
``torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)``, whose reader can read our
files and whose files we can read. Without that entry every tensor begins at zero.

Unlike that writer (and ``safetensors.serialize``, whose metadata order changes from process to process) the
same tensors always give the same bytes: header and metadata are in sorted order.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from automodel_cli.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
SHARDING_KEY = "DCP_SHARDING_INFO"
_LENGTH = struct.Struct("<Q")

# Bytes of one element. The numpy type of bfloat16 and float8 does not exist: they are read as raw bit
# patterns.
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "F8_E5M2": "u1",
    "F8_E4M3": "u1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. ``begin`` and ``end`` count bytes from the start of the file.

    ``offsets`` is where this part begins in the whole tensor (all zero when the file holds it whole).
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    offsets: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def box(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where this part begins in the whole tensor, and its sizes."""
        return self.offsets, self.shape

    @property
    def end_offsets(self) -> tuple[int, ...]:
        """Where this part ends in the whole tensor."""
        return tuple(offset + size for offset, size in zip(self.offsets, self.shape, strict=True))


@dataclass(frozen=True)
class Header:
    """What a file says of itself. ``tensors`` is in the order of their bytes in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_begin: int


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """Header bytes (length field included) for ``{name: (dtype, shape)}``, and the order of the tensors."""
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        size = ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text, order


def sharding_metadata(offsets: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The ``__metadata__`` of a shard file: torch's reader takes its tensor positions from it."""
    info = {name: {"saved_offsets": list(offset)} for name, offset in sorted(offsets.items())}
    return {"format": "pt", "DCP_VERSION": "1.0", SHARDING_KEY: json.dumps(info)}


def read_header(path: Path | str) -> Header:
    """Read and check the header of ``path``.

    Raises:
        CheckpointError: the file cannot be read, is no safetensors file, or was cut off.
    """
    try:
        with Path(path).open("rb") as handle:
            return read_header_from(handle, str(path), os.fstat(handle.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "is the path right?") from error


def read_header_from(handle: IO[bytes] | Any, name: str, file_bytes: int) -> Header:
    """Read the header from an open file at position 0; ``name`` is for messages."""
    start = handle.read(8)
    length = _LENGTH.unpack(start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
    if length > MAX_HEADER_BYTES or 8 + length > file_bytes:
        raise CheckpointError(
            f"{name} is not a safetensors file: its header would have {length:,} of {file_bytes:,} bytes",
            "the file is damaged, cut off, or of another kind",
        )
    try:
        return _parse_header(json.loads(handle.read(length)), 8 + length, file_bytes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{name} is not a readable safetensors file: {error}",
            "the file is damaged, cut off, or of another kind",
        ) from error


def _parse_header(header: dict[str, Any], data_begin: int, file_bytes: int) -> Header:
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    positions = json.loads(metadata.get(SHARDING_KEY, "{}"))
    tensors = {}
    for name, entry in header.items():
        shape = tuple(int(size) for size in entry["shape"])
        begin, end = (data_begin + int(offset) for offset in entry["data_offsets"])
        offsets = tuple(positions[name]["saved_offsets"]) if positions else (0,) * len(shape)
        if len(offsets) != len(shape) or any(number < 0 for number in (*shape, *offsets)):
            raise ValueError(f"tensor {name!r} has shape {shape} at {offsets}")
        if end - begin != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
            raise ValueError(f"tensor {name!r} has {end - begin} bytes for shape {shape} of {entry['dtype']}")
        tensors[name] = TensorInfo(entry["dtype"], shape, begin, end, offsets)
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = data_begin
    for name, info in ordered.items():
        if info.begin != position:
            raise ValueError(f"tensor {name!r} begins at byte {info.begin}, expected {position}")
        position = info.end
    if position != file_bytes:
        raise ValueError(f"the tensors end at byte {position:,}, the file at {file_bytes:,}")
    return Header(ordered, metadata, data_begin)


def raw_array(path: Path | str, info: TensorInfo) -> np.ndarray:
    """A read-only view of one tensor's bytes in the file; bfloat16 and float8 as unsigned bit patterns."""
    if info.num_bytes == 0:
        return np.zeros(info.shape, dtype=_NUMPY[info.dtype])
    return np.memmap(
        path, dtype=_NUMPY[info.dtype], mode="r", offset=info.begin, shape=info.shape or (1,)
    ).reshape(info.shape)
