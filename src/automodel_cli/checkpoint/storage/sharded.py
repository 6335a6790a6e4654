"""Named tensors to ``shard-00001-model-00001-of-00001.safetensors`` and back: one file per rank.

The layout is that of ``torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)``: its
reader loads our files and we load its (both tested). We write the bytes ourselves, because that writer (torch
2.13)

- holds the whole file twice more in memory (512 MiB of tensors: 1,026 MiB extra; here: one tensor at a time),
- gives other bytes in every process for the same tensors, so equal checkpoints do not have equal hashes,
- refuses tied weights and transposed (non-contiguous) tensors, and puts a pickle in front of the header when the
  state holds anything that is no tensor, which leaves a file that nothing can read,
- cannot hash while it writes.

Many ranks need no new format: each writes its own file, with the position of its shards in the header
(``offsets``), and :func:`load_tensors` already puts shards together wherever they come from.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from automodel_cli.checkpoint.all_ranks import all_ranks
from automodel_cli.checkpoint.storage import tensor_file
from automodel_cli.checkpoint.storage.local_shards import LocalShard, local_shard
from automodel_cli.checkpoint.storage.step_files import InputFile, StepReader, StepWriter
from automodel_cli.distributed.chunks import Chunk, intersection, narrowed
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


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    writer: StepWriter,
    folder: str,
    *,
    rank: int = 0,
    offsets: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write one rank's tensors into ``folder/shard-...``; nothing at all when there are none.

    ``offsets`` tells where a shard begins in the whole tensor; without it the tensors are whole. Tensors may
    live on any device and have any strides; one at a time is copied to the CPU.
    """
    if not tensors:
        return
    positions = {name: (offsets or {}).get(name, (0,) * tensor.dim()) for name, tensor in tensors.items()}
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writer.open(f"{folder}/{shard_name(rank)}") as output:
        metadata = tensor_file.sharding_metadata(positions)
        write_stream(shapes, tensors.__getitem__, output, metadata=metadata)


def save_shards(shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World) -> None:
    """Write what this rank has to write, in a file of its own."""
    values = {name: shard.values for name, shard in shards.items()}
    offsets = {name: shard.offsets for name, shard in shards.items()}
    save_tensors(values, writer, folder, rank=world.rank, offsets=offsets)


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


def split_ties(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that are one and the same memory only once, and ``{other name: name it is stored under}``."""
    kept: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = held.untyped_storage()._cdata if held.is_meta else held.data_ptr()
        key = (held.device, place, held.storage_offset(), held.dtype, tuple(held.shape), held.stride())
        if held.numel() and key in seen:
            ties[name] = seen[key]
        else:
            seen[key] = name
            kept[name] = tensor
    return kept, ties


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class WholeTensor:
    """What the shards in all shard files add up to."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def scan(reader: StepReader, folder: str) -> dict[str, WholeTensor]:
    """Names, types and full shapes of the tensors stored below ``folder``, from the headers alone.

    Raises:
        CheckpointError: a header cannot be read, or the shards of a tensor leave a gap.
    """
    shards: dict[str, list[tensor_file.TensorInfo]] = {}
    with _damage_explains(reader, folder):
        for name in _shards(reader, folder):
            for tensor, info in tensor_file.read_header(reader.folder / name).tensors.items():
                shards.setdefault(tensor, []).append(info)
        for tensor, found in shards.items():
            tensor_file.check_cover(tensor, found, reader.folder / folder)
    return {
        tensor: WholeTensor(DTYPES[found[0].dtype], tensor_file.whole_shape(tensor, found))
        for tensor, found in shards.items()
    }


def load_tensors(
    reader: StepReader,
    folder: str,
    targets: Mapping[str, torch.Tensor],
    *,
    cast: bool = False,
    world: World | None = None,
) -> None:
    """Read the tensors below ``folder`` into ``targets`` (which must be the same set), checking every hash.

    Of a sharded target each rank reads its own chunk, wherever the chunks of the ranks that wrote lay. Each file is
    hashed by one rank: the one that wants most of it, which reads it in one pass and fills its targets from that;
    the others read the rows they need. No second copy of what is contiguous and on the CPU. When this raises, some
    targets may already hold what was read: throw them away.

    Raises:
        CheckpointError: names or shapes differ, types differ (unless ``cast``), or a file is damaged; only of the
            ranks that met it (see ``together``).
    """
    world, what = world or World.single(), f"loading {reader.folder}"
    shards = _shards(reader, folder)
    regions: dict[str, LocalShard] = {}

    def prepare() -> list[int]:
        stored = scan(reader, folder)
        with _damage_explains(reader, folder):
            compare(reader.folder / folder, stored, targets, cast=cast)
        regions.update({name: local_shard(name, target) for name, target in targets.items()})
        return [_wanted_bytes(reader.folder / name, regions) for name in shards]

    wanted = all_ranks(world, prepare, what=what)
    all_ranks(world, lambda: _read_shards(reader, folder, regions, wanted, world.rank), what=what)


def _read_shards(
    reader: StepReader, folder: str, regions: Mapping[str, LocalShard], wanted: Sequence[list[int]], rank: int
) -> None:
    """One rank's share: its own chunks, and the hashes of the files that fall to it."""
    shards = _shards(reader, folder)
    with torch.no_grad():
        for number, name in enumerate(shards):
            wants = [of_rank[number] for of_rank in wanted]
            is_checker = _checker(wants, number) == rank
            if is_checker or wants[rank]:
                with reader.open(name, hashed=is_checker) as stream:
                    _load_file(stream, regions)
    others = [name for name in reader.names(folder) if name not in shards]
    for name in others[rank :: len(wanted)]:
        reader.check(name)


def _checker(wants: Sequence[int], number: int) -> int:
    """The rank that hashes a file: one of those that want most of it, in turn where several do."""
    eager = [rank for rank, want in enumerate(wants) if want == max(wants)]
    return eager[number % len(eager)]


def _wanted_bytes(path: Path, regions: Mapping[str, LocalShard]) -> int:
    """How much of a file this rank needs."""
    total = 0
    for name, info in tensor_file.read_header(path).tensors.items():
        common = intersection(info.chunk, regions[name].chunk)
        total += math.prod(common[1]) * tensor_file.ITEM_BYTES[info.dtype] if common else 0
    return total


class StoredTensors:
    """The tensors below a folder, one at a time: for who cannot hold them all. Hashes are not looked at."""

    def __init__(self, reader: StepReader, folder: str) -> None:
        self._reader = reader
        self._headers = {
            name: tensor_file.read_header(reader.folder / name) for name in _shards(reader, folder)
        }
        self.whole = scan(reader, folder)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, put together from wherever its shards lie, on the CPU."""
        tensor = torch.empty(self.whole[name].shape, dtype=self.whole[name].dtype)
        region = {name: local_shard(name, tensor)}
        for shard, header in self._headers.items():
            if name in header.tensors:
                with self._reader.open(shard, hashed=False) as stream:
                    _load_file(stream, region, header=header)
        return tensor


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


def compare(
    path: Path, stored: Mapping[str, WholeTensor], targets: Mapping[str, torch.Tensor], *, cast: bool
) -> None:
    """Refuse stored tensors that cannot fill ``targets``.

    Raises:
        CheckpointError: as :func:`compare_names` and :func:`compare_tensor`.
    """
    compare_names(path, stored, targets)
    for name, whole in stored.items():
        compare_tensor(path, name, whole, targets[name], cast=cast)


def compare_names(path: Path, stored: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Refuse a stored set of tensors that is not the wanted one, with the difference.

    Raises:
        CheckpointError: names are missing or left over.
    """
    missing, unknown = targets.keys() - stored.keys(), stored.keys() - targets.keys()
    if missing or unknown:
        found = [f"lacks {len(missing)} of {len(targets)} tensors: {_some(missing)}"] if missing else []
        found += [f"holds {len(unknown)} that this run has not: {_some(unknown)}"] if unknown else []
        raise CheckpointError(
            f"{path} {'; '.join(found)}", "the model or optimizer is not the one that was saved"
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


def _load_file(
    stream: InputFile,
    regions: Mapping[str, LocalShard],
    *,
    header: tensor_file.Header | None = None,
) -> None:
    header = header or tensor_file.read_header_from(stream, str(stream.path), stream.num_bytes)
    for name, info in header.tensors.items():
        if name in regions and (common := intersection(info.chunk, regions[name].chunk)) is not None:
            _read_chunk(stream, info, regions[name], common)


def _read_chunk(stream: InputFile, info: tensor_file.TensorInfo, region: LocalShard, common: Chunk) -> None:
    """Read what ``common`` has of a stored shard into ``region``: whole rows of it, some megabytes at a time."""
    dtype, target = DTYPES[info.dtype], narrowed(region.values, region.offsets, common)
    if (
        common == info.chunk
        and target.device.type == "cpu"
        and target.is_contiguous()
        and target.dtype == dtype
    ):
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


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names) - limit} more)" if len(names) > limit else "")
