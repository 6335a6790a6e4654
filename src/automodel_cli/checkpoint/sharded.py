"""Named tensors to ``shard-00001-model-00001-of-00001.safetensors`` and back: one file a rank.

The layout is that of ``torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)``: its
reader loads our files and we load its (both tested). We write the bytes ourselves, because that writer (torch
2.13)

- holds the whole file twice more in memory (512 MiB of tensors: 1,026 MiB extra; here: one tensor at a time),
- gives other bytes in every process for the same tensors, so equal checkpoints do not have equal hashes,
- refuses tied weights and transposed (non-contiguous) tensors, and puts a pickle in front of the header when
the
  state holds anything that is no tensor, which leaves a file that nothing can read,
- cannot hash while it writes.

Many ranks need no new format: each writes its own file, with the position of its parts in the header
(``offsets``), and :func:`load_tensors` already puts parts together wherever they come from.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automodel_cli.checkpoint import tensor_file
from automodel_cli.checkpoint.step_files import HashedInput, StepReader, StepWriter
from automodel_cli.errors import CheckpointError

SUFFIX = ".safetensors"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def shard_name(rank: int = 0) -> str:
    """The file of one rank, named as torch's writer names it."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001{SUFFIX}"


def dtype_name(dtype: torch.dtype) -> str:
    """``F32`` for ``torch.float32`` and so on.

    Raises:
        CheckpointError: safetensors has no such type.
    """
    if dtype not in _NAMES:
        raise CheckpointError(f"a tensor of type {dtype} cannot be stored in safetensors", "convert it first")
    return _NAMES[dtype]


# ---------------------------------------------------------------------------------------------- writing


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    writer: StepWriter,
    folder: str,
    *,
    rank: int = 0,
    offsets: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write one rank's tensors into ``folder/shard-...``; nothing at all when there are none.

    ``offsets`` tells where a part begins in the whole tensor; without it the tensors are whole. Tensors may
    live on any device and have any strides; one at a time is copied to the CPU.
    """
    if not tensors:
        return
    with writer.open(f"{folder}/{shard_name(rank)}") as output:
        write_stream(
            tensors,
            output,
            metadata=tensor_file.sharding_metadata(
                {name: (offsets or {}).get(name, (0,) * tensor.dim()) for name, tensor in tensors.items()}
            ),
        )


def write_stream(tensors: Mapping[str, torch.Tensor], output: Any, *, metadata: Mapping[str, str]) -> None:
    """Write a whole safetensors file into ``output`` (anything with ``write``)."""
    shapes = {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    header, order = tensor_file.encode_header(shapes, metadata)
    output.write(header)
    for name in order:
        output.write(byte_view(tensors[name].detach().to("cpu").contiguous()))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as flat bytes; writing to the view writes to the tensor."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def split_ties(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that are one and the same memory only once, and ``{other name: name it is stored under}``."""
    kept: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and not tensor.is_meta and key in seen:
            ties[name] = seen[key]
        else:
            seen[key] = name
            kept[name] = tensor
    return kept, ties


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class WholeTensor:
    """What the parts in all shard files add up to."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def scan(reader: StepReader, folder: str) -> dict[str, WholeTensor]:
    """Names, types and full shapes of the tensors stored below ``folder``, from the headers alone.

    Raises:
        CheckpointError: a header cannot be read, or the parts of a tensor leave a gap.
    """
    whole: dict[str, WholeTensor] = {}
    elements: dict[str, int] = {}
    with _damage_explains(reader, folder):
        for name in _shards(reader, folder):
            for tensor, info in tensor_file.read_header(reader.folder / name).tensors.items():
                end = tuple(offset + size for offset, size in zip(info.offsets, info.shape, strict=True))
                shape = tuple(map(max, whole[tensor].shape, end)) if tensor in whole else end
                whole[tensor] = WholeTensor(DTYPES[info.dtype], shape)
                elements[tensor] = elements.get(tensor, 0) + math.prod(info.shape)
        for tensor, found in whole.items():
            if elements[tensor] != math.prod(found.shape):
                raise CheckpointError(
                    f"{reader.folder / folder} holds {elements[tensor]:,} of {math.prod(found.shape):,} elements "
                    f"of {tensor!r}",
                    "a shard file is missing or damaged",
                )
    return whole


def load_tensors(
    reader: StepReader, folder: str, targets: Mapping[str, torch.Tensor], *, cast: bool = False
) -> None:
    """Read the tensors below ``folder`` into ``targets`` (which must be the same set), checking every hash.

    One pass over each file; no second copy of a tensor that is contiguous and on the CPU. When this raises, some
    targets may already hold what was read: throw them away.

    Raises:
        CheckpointError: names or shapes differ, types differ (unless ``cast``), or a file is damaged.
    """
    stored = scan(reader, folder)
    with _damage_explains(reader, folder):
        compare_names(reader.folder / folder, stored, targets)
        for name, whole in stored.items():
            compare_tensor(reader.folder / folder, name, whole, targets[name], cast=cast)
    shards = _shards(reader, folder)
    for name in reader.names(folder):
        with reader.open(name) as stream:
            if name in shards:
                _load_file(stream, targets)


def _shards(reader: StepReader, folder: str) -> list[str]:
    return [name for name in reader.names(folder) if name.endswith(SUFFIX)]


@contextlib.contextmanager
def _damage_explains(reader: StepReader, folder: str) -> Iterator[None]:
    """Headers are read before their file's hash is known: when they do not fit, damage is the first reason."""
    try:
        yield
    except CheckpointError:
        for name in _shards(reader, folder):
            reader.check(name)
        raise


def compare_names(path: Path, stored: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Refuse a stored set of tensors that is not the wanted one, with the difference.

    Raises:
        CheckpointError: names are missing or left over.
    """
    missing, unknown = targets.keys() - stored.keys(), stored.keys() - targets.keys()
    if missing or unknown:
        parts = [f"lacks {len(missing)} of {len(targets)} tensors: {_some(missing)}"] if missing else []
        parts += [f"holds {len(unknown)} that this run has not: {_some(unknown)}"] if unknown else []
        raise CheckpointError(
            f"{path} {'; '.join(parts)}", "the model or optimizer is not the one that was saved"
        )


def compare_tensor(path: Path, name: str, stored: WholeTensor, target: torch.Tensor, *, cast: bool) -> None:
    """Refuse a tensor of another shape, or (unless ``cast``) of another type.

    Raises:
        CheckpointError: they differ.
    """
    if stored.shape != tuple(target.shape):
        raise CheckpointError(
            f"{path}: {name!r} is stored as {list(stored.shape)}, this run has {list(target.shape)}",
            "the model is not the one that was saved",
        )
    if not cast and target.dtype != stored.dtype:
        raise CheckpointError(
            f"{path}: {name!r} is stored as {stored.dtype}, this run has {target.dtype}",
            "use the precision that the run was started with",
        )


def _load_file(stream: HashedInput, targets: Mapping[str, torch.Tensor]) -> None:
    header = tensor_file.read_header_from(stream, str(stream.path), stream.num_bytes)
    for name, info in header.tensors.items():
        region = targets[name].detach()
        for dim, (offset, size) in enumerate(zip(info.offsets, info.shape, strict=True)):
            region = region.narrow(dim, offset, size)
        _read_tensor(stream, region, DTYPES[info.dtype])


def _read_tensor(stream: HashedInput, region: torch.Tensor, dtype: torch.dtype) -> None:
    if region.device.type == "cpu" and region.is_contiguous() and region.dtype == dtype:
        stream.read_into(byte_view(region))
        return
    pinned = region.device.type == "cuda"  # a pinned source is copied at full bus speed
    buffer = torch.empty(region.shape, dtype=dtype, pin_memory=pinned)
    stream.read_into(byte_view(buffer))
    region.copy_(buffer)


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names) - limit} more)" if len(names) > limit else "")
