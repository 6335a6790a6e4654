"""Named tensors to ``shard-00001-model-00001-of-00001.safetensors`` and back: one file per rank.

The layout is that of ``torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)``: its
reader loads our files and we load its (both tested). We write the bytes ourselves, because that writer (torch
2.13)

- holds the whole file twice more in memory (512 MiB of tensors: 1,026 MiB extra; here: one tensor at a time),
- gives other bytes in every process for the same tensors, so equal checkpoints do not have equal hashes,
- refuses tied weights and transposed (non-contiguous) tensors, and puts a pickle in front of the header when the
  state holds anything that is no tensor, which leaves a file that nothing can read,
- cannot hash while it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from automodel_cli.checkpoint.storage import tensor_file
from automodel_cli.checkpoint.storage.local_shards import LocalShard
from automodel_cli.checkpoint.storage.step_files import InputFile, StepReader, StepWriter
from automodel_cli.distributed.chunks import Chunk, narrowed
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

_SLAB_BYTES = 64 << 20  # what is read at a time where it cannot go straight to its place
SUFFIX = ".safetensors"
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
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


def save_shards(shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World) -> None:
    """Write what this rank has to write into ``folder/shard-...``; nothing at all when there is nothing.

    Tensors may live on any device and have any strides; one at a time is copied to the CPU.
    """
    if shards:
        shapes = {name: (shard.values.dtype, tuple(shard.values.shape)) for name, shard in shards.items()}
        metadata = tensor_file.sharding_metadata({name: shard.offsets for name, shard in shards.items()})
        with writer.open(f"{folder}/{shard_name(world.rank)}") as output:
            write_stream(shapes, lambda name: shards[name].values, output, metadata=metadata)


def finish(notes: Any, writer: StepWriter, folder: str) -> None:
    """Nothing is left to do once every rank has written: each file says itself what it holds."""


def write_stream(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    values: Callable[[str], torch.Tensor],
    output: Any,
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a whole safetensors file into ``output`` (anything with ``write``); ``values`` is called once a tensor."""
    named = {name: (dtype_name(dtype), shape) for name, (dtype, shape) in shapes.items()}
    header, order = tensor_file.encode_header(named, metadata)
    output.write(header)
    for name in order:
        output.write(byte_view(values(name).detach().to("cpu").contiguous()))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as flat bytes; writing to the view writes to the tensor."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


# ---------------------------------------------------------------------------------------------- reading


def scan(reader: StepReader, folder: str) -> dict[str, tensor_file.StoredTensor]:
    """The tensors below ``folder``, from the headers alone.

    Raises:
        CheckpointError: a header cannot be read, or the shards of a tensor leave a gap.
    """
    names = [name for name in reader.names(folder) if name.endswith(SUFFIX)]
    found = tensor_file.gather(reader.folder / name for name in names)
    for tensor in found:
        tensor_file.check_cover(tensor, reader.folder / folder)
    return {tensor.name: tensor for tensor in found}


def read_chunk(stream: InputFile, info: tensor_file.TensorInfo, region: LocalShard, common: Chunk) -> None:
    """Read what ``common`` has of a stored shard into ``region``: whole rows of it, some megabytes at a time."""
    dtype, target = DTYPES[info.dtype], narrowed(region.values, region.offsets, common)
    is_plain = target.device.type == "cpu" and target.is_contiguous() and target.dtype == dtype
    if common == info.chunk and is_plain:
        stream.skip_to(info.begin)
        stream.read_into(byte_view(target))
        return
    rows = info.shape[0] if info.shape else 1
    row_bytes = info.num_bytes // rows
    first = common[0][0] - info.offsets[0] if info.shape else 0
    last = first + (common[1][0] if info.shape else 1)
    step = max(1, _SLAB_BYTES // row_bytes)
    pinned = target.device.type == "cuda"  # a pinned source is copied at full bus speed
    for row in range(first, last, step):
        count = min(step, last - row)
        slab = torch.empty((count, *info.shape[1:]) if info.shape else (), dtype=dtype, pin_memory=pinned)
        stream.skip_to(info.begin + row * row_bytes)
        stream.read_into(byte_view(slab))
        if not info.shape:
            target.copy_(slab)
            continue
        chunk = ((info.offsets[0] + row, *common[0][1:]), (count, *common[1][1:]))
        begin = (info.offsets[0] + row, *info.offsets[1:])
        narrowed(region.values, region.offsets, chunk).copy_(narrowed(slab, begin, chunk))
