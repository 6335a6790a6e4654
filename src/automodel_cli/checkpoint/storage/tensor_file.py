"""The bytes of a ``.safetensors`` file, without torch: header in and out, tensors as numpy arrays.

    offset   bytes  content
    0        8      N, the length of the header, unsigned little-endian; N <= 100,000,000
    8        N      JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}},
                    padded with spaces so that 8 + N is a multiple of 8
    8 + N    ...    tensors, row-major, little-endian, back to back in the order of their offsets,
                    wide element types first so that each one is aligned

A file that holds one rank's shard of larger tensors says where each shard begins in
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from automodel_cli.distributed.chunks import Chunk, intersection
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel, Items, open_to_read, parse_json, validated

MAX_HEADER_BYTES = 100_000_000
SHARDING_KEY = "DCP_SHARDING_INFO"
_LENGTH = struct.Struct("<Q")

# Element types as numpy knows them; bfloat16 and float8, which it does not, are read as raw bit patterns.
_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E5M2": "u1", "F8_E4M3": "u1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in _NUMPY.items()}
Dtype = Literal[
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64",
    "C64",
]  # fmt: skip
Shape = Annotated[Items[Count], Field(max_length=64)]
_MOST_EMPTY = 2**48  # a tensor without elements may still have widths; torch and numpy multiply them


class _Entry(FileModel):
    """What a header says of one tensor."""

    dtype: Dtype
    shape: Shape
    data_offsets: tuple[Count, Count] = Field(strict=False)


class _Position(FileModel):
    """Where a shard begins in the whole tensor."""

    saved_offsets: Shape


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. ``begin`` and ``end`` count bytes from the start of the file.

    ``offsets`` is where this shard begins in the whole tensor (all zero when the file holds it whole).
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
    def chunk(self) -> Chunk:
        """Where this shard begins in the whole tensor, and its sizes."""
        return self.offsets, self.shape

    @property
    def end_offsets(self) -> tuple[int, ...]:
        """Where this shard ends in the whole tensor."""
        return tuple(offset + size for offset, size in zip(self.offsets, self.shape, strict=True))


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a model, wherever its shards lie.

    ``shape`` is that of the whole; ``shards`` are the files that hold it (none where only a manifest names it).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: tuple[tuple[Path, TensorInfo], ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]

    def as_dict(self) -> dict[str, Any]:
        """Name, shape and type, as JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    def raw(self) -> np.ndarray:
        """The whole tensor as stored (bit patterns for bfloat16 and float8); a view of the file if in one shard."""
        if len(self.shards) == 1:
            return raw_array(*self.shards[0])
        check_cover(self, self.shards[0][0].parent)
        whole = np.zeros(self.shape, dtype=_NUMPY[self.dtype])
        for path, info in self.shards:
            region = tuple(slice(o, o + n) for o, n in zip(info.offsets, info.shape, strict=True))
            whole[region] = raw_array(path, info)
        return whole


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
        with open_to_read(path) as handle:
            start, file_bytes = handle.read(8), os.fstat(handle.fileno()).st_size
            length = _LENGTH.unpack(start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
            if length > MAX_HEADER_BYTES or 8 + length > file_bytes:
                found = f"its header would have {length:,} of {file_bytes:,} bytes"
                raise CheckpointError(f"{path} is not a safetensors file: {found}", _ANOTHER_KIND)
            return _parse_header(handle.read(length), str(path), 8 + length, file_bytes)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "is the path right?") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}", _ANOTHER_KIND) from error


_ANOTHER_KIND = "the file is damaged, cut off, or of another kind"


def _parse_header(content: bytes, where: str, data_begin: int, file_bytes: int) -> Header:
    where, error, hint = f"the header of {where}", CheckpointError, _ANOTHER_KIND
    header = parse_json(content, where, error, hint=hint)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = validated(header.pop("__metadata__", {}), dict[str, str], where, error, hint=hint)
    entries = validated(header, dict[str, _Entry], where, error, hint=hint)
    written = parse_json(metadata.get(SHARDING_KEY, "{}"), where, error, hint=hint)
    positions = validated(written, dict[str, _Position], where, error, hint=hint)
    tensors = {}
    for name, entry in entries.items():
        if positions and name not in positions:
            raise ValueError(f"{SHARDING_KEY} does not say where tensor {name!r} begins")
        offsets = positions[name].saved_offsets if positions else (0,) * len(entry.shape)
        tensors[name] = _tensor_info(name, entry, offsets, data_begin)
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = data_begin
    for name, info in ordered.items():  # back to back: no overlap, no gap
        if info.begin != position:
            raise ValueError(f"tensor {name!r} begins at byte {info.begin}, expected {position}")
        position = info.end
    if position != file_bytes:
        raise ValueError(f"the tensors end at byte {position:,}, the file at {file_bytes:,}")
    return Header(ordered, metadata, data_begin)


def _tensor_info(name: str, entry: _Entry, offsets: tuple[int, ...], data_begin: int) -> TensorInfo:
    begin, end = (data_begin + offset for offset in entry.data_offsets)
    if len(offsets) != len(entry.shape):
        raise ValueError(f"tensor {name!r} has shape {entry.shape} at {offsets}")
    if end - begin != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes for shape {entry.shape} of {entry.dtype}")
    if begin == end and math.prod(max(1, size) for size in entry.shape) > _MOST_EMPTY:
        raise ValueError(f"tensor {name!r} has no elements and shape {entry.shape}")
    return TensorInfo(entry.dtype, entry.shape, begin, end, offsets)


def gather(paths: Iterable[Path]) -> list[StoredTensor]:
    """The tensors in some files, shards of one put together, sorted by name.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return put_together((name, path, info) for path in paths for name, info in read_header(path).tensors.items())


def put_together(shards: Iterable[tuple[str, Path, TensorInfo]]) -> list[StoredTensor]:
    """Tensors from their shards, sorted by name; the shards of one need not be all of it.

    Raises:
        CheckpointError: shards of one tensor are of different types, or have different numbers of dimensions.
    """
    found: dict[str, list[tuple[Path, TensorInfo]]] = {}
    for name, path, info in shards:
        found.setdefault(name, []).append((path, info))
    return [_whole(name, of_tensor) for name, of_tensor in sorted(found.items())]


def _whole(name: str, shards: list[tuple[Path, TensorInfo]]) -> StoredTensor:
    first = shards[0][1]
    if any(info.dtype != first.dtype or len(info.shape) != len(first.shape) for _, info in shards):
        raise CheckpointError(f"the shards of tensor {name!r} do not belong together", _ANOTHER_KIND)
    shape = tuple(map(max, zip(*(info.end_offsets for _, info in shards), strict=True)))
    return StoredTensor(name, first.dtype, shape, tuple(shards))


def check_cover(tensor: StoredTensor, where: Path | str) -> None:
    """Check that the shards of a tensor hold every element of it once.

    Raises:
        CheckpointError: they leave a gap, or overlap.
    """
    shards = [info for _, info in tensor.shards]
    held = sum(math.prod(shard.shape) for shard in shards)
    if held != tensor.num_elements:
        raise CheckpointError(
            f"{where} holds {held:,} of {tensor.num_elements:,} elements of {tensor.name!r}",
            "a shard file is missing or damaged",
        )
    ordered = sorted((shard for shard in shards if math.prod(shard.shape)), key=lambda shard: shard.offsets)
    for index, shard in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if tensor.shape and other.offsets[0] >= shard.end_offsets[0]:
                break  # as all after it
            if intersection(shard.chunk, other.chunk) is not None:
                raise CheckpointError(
                    f"two shards of {tensor.name!r} in {where} overlap",
                    "a shard file is damaged, or of another checkpoint",
                )


def raw_array(path: Path | str, info: TensorInfo) -> np.ndarray:
    """A read-only view of one tensor's bytes in the file; bfloat16 and float8 as unsigned bit patterns."""
    if info.num_bytes == 0:
        return np.zeros(info.shape, dtype=_NUMPY[info.dtype])
    return np.memmap(path, dtype=_NUMPY[info.dtype], mode="r", offset=info.begin, shape=info.shape or (1,)).reshape(
        info.shape
    )
