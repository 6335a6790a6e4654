"""The ``torch_save`` format: torch's own distributed checkpoints (``.distcp`` and a pickled ``.metadata``).

    __RANK_0.distcp    for each shard what ``torch.save`` makes of it, back to back
    .metadata          a pickle of torch's ``Metadata``: types, shapes and chunks, and which bytes hold each chunk

An option, for exchange with other trainers; ``safetensors`` is the default. Its dangers stay outside:

- ``.metadata`` is read by an unpickler that knows the names such a file needs and makes inert records of them. Any
  other name is an error.
- Entries that are not tensors would be unpickled without limits by torch's planner. They are left out.
- The tensors are read as files of strangers are (``imports.torch_file``).

Paths and random ids, which torch puts into the metadata, are left out: equal states give equal bytes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.imports import closed_pickle, torch_file
from automodel_cli.checkpoint.storage import tensor_file
from automodel_cli.checkpoint.storage.local_shards import LocalShard
from automodel_cli.checkpoint.storage.sharded import DTYPES, dtype_name
from automodel_cli.checkpoint.storage.step_files import InputFile, StepReader, StepWriter
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, TensorInfo
from automodel_cli.distributed.chunks import Chunk, narrowed
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

METADATA = ".metadata"
_REFUSED = "only a description of tensors is read from it: do not use this checkpoint unless you made it"


# ---------------------------------------------------------------------------------------------- writing


def save_shards(
    shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World
) -> list[dict[str, Any]]:
    """Write what this rank has to write into ``folder/__RANK_0.distcp``; where each shard went, as JSON.

    All ranks' lists together are what :func:`finish` makes the metadata of.
    """
    if not shards:
        return []
    name, places = f"__{world.rank}_0.distcp", []
    with writer.open(f"{folder}/{name}") as output:
        for tensor, shard in shards.items():
            content = io.BytesIO()
            torch.save(_compact(shard.values), content)
            place = {"file": name, "offset": output.num_bytes, "length": len(content.getbuffer())}
            output.write(content.getbuffer())
            chunk = {"offsets": shard.offsets, "sizes": list(shard.values.shape), "whole": shard.whole}
            places.append({"name": tensor, "dtype": dtype_name(shard.values.dtype), **chunk, **place})
    return places


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, and a view without the rest of its storage, which ``torch.save`` would write too."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def finish(places: list[list[dict[str, Any]]], writer: StepWriter, folder: str) -> None:
    """Write ``folder/.metadata`` from what every rank's :func:`save_shards` returned."""
    tensors: dict[str, Any] = {}
    storage = {}
    for place in (place for of_rank in places for place in of_rank):
        name, offsets = place["name"], torch.Size(place["offsets"])
        properties = TensorProperties(dtype=DTYPES[place["dtype"]])
        whole = TensorStorageMetadata(properties, torch.Size(place["whole"]), [])
        chunks = tensors.setdefault(name, whole).chunks
        storage[MetadataIndex(name, offsets, len(chunks))] = _StorageInfo(
            place["file"], place["offset"], place["length"]
        )
        chunks.append(ChunkStorageMetadata(offsets, torch.Size(place["sizes"])))
    if storage:
        made = Metadata(state_dict_metadata=tensors, storage_data=storage)
        if len(places) == 1:  # as torch writes it, which one process used to let do it
            made.planner_data, made.version = {name: (name,) for name in tensors}, "1.0.0"
        writer.write_bytes(f"{folder}/{METADATA}", pickle.dumps(made))


# ---------------------------------------------------------------------------------------------- reading


def scan(reader: StepReader, folder: str) -> dict[str, StoredTensor]:
    """The tensors below ``folder``, from the metadata.

    Raises:
        CheckpointError: the metadata is damaged or refused, or describes more than the files hold.
    """
    name, sizes = f"{folder}/{METADATA}", {name: reader.num_bytes(name) for name in reader.names(folder)}
    if name not in sizes:  # an optimizer without any tensors
        return {}
    path = reader.folder / name
    shards = parse_metadata(reader.read_bytes(name), path)
    tensors = tensor_file.put_together((tensor, path.parent / file, info) for tensor, file, info in shards)
    claimed, held = sum(tensor.num_bytes for tensor in tensors), sum(sizes.values())
    if claimed > held:
        raise CheckpointError(
            f"{path} describes {claimed:,} bytes of tensors, the files hold {held:,}",
            layout.recovery_hint(reader.folder),
        )
    for _, file, info in shards:
        if info.end > sizes.get(f"{folder}/{file}", 0):
            raise CheckpointError(f"{path}: a tensor lies beyond the end of {file}", _REFUSED)
    for tensor in tensors:
        tensor_file.check_cover(tensor, path.parent)
    return {tensor.name: tensor for tensor in tensors}


def read_chunk(stream: InputFile, info: TensorInfo, region: LocalShard, common: Chunk) -> None:
    """Read what ``common`` has of a stored shard into ``region``."""
    stream.skip_to(info.begin)
    found = torch_file.parse(stream.read(info.num_bytes), stream.path)
    if not isinstance(found, torch.Tensor) or (found.dtype, tuple(found.shape)) != (
        DTYPES[info.dtype],
        info.shape,
    ):
        raise CheckpointError(f"{stream.path} holds another tensor than its {METADATA} says", _REFUSED)
    narrowed(region.values, region.offsets, common).copy_(narrowed(found, info.offsets, common))


# ---------------------------------------------------------------------------------------------- metadata


class _Record:
    """What every admitted name becomes: arguments and state are kept, nothing is called."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.args = state

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is missing in a record")


class _Index(_Record): ...


class _Storage(_Record): ...


class _Tensor(_Record): ...


_DCP = "torch.distributed.checkpoint.metadata"
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    (_DCP, "Metadata"): _Record,
    (_DCP, "TensorStorageMetadata"): _Tensor,
    (_DCP, "BytesStorageMetadata"): _Record,
    (_DCP, "TensorProperties"): _Record,
    (_DCP, "ChunkStorageMetadata"): _Record,
    (_DCP, "MetadataIndex"): _Index,
    (_DCP, "StorageMeta"): _Record,
    (_DCP, "_MEM_FORMAT_ENCODING"): _Record,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Storage,
    ("torch.serialization", "_get_layout"): _Record,
    ("torch", "Size"): closed_pickle.few_numbers,
    ("pathlib", "PosixPath"): _Record,
    ("pathlib._local", "PosixPath"): _Record,
    ("collections", "OrderedDict"): closed_pickle.Dict,
}


def parse_metadata(content: bytes, path: Path) -> list[tuple[str, str, TensorInfo]]:
    """Name, file and place of each shard of the tensors that a ``.metadata`` lists; what else it lists is left out.

    Raises:
        CheckpointError: it is no such file, or names anything that such a file does not need.
    """
    try:
        record = closed_pickle.load(content, _ADMITTED)
        places = {
            (str(index.fqn), _numbers(index.offset)): _place(info)
            for index, info in record.storage_data.items()
            if isinstance(index, _Index) and getattr(index, "offset", None) is not None
        }
        return [
            (str(name), file, info)
            for name, entry in record.state_dict_metadata.items()
            if isinstance(entry, _Tensor)
            for file, info in _shards(str(name), entry, places)
        ]
    except Exception as error:  # a hostile pickle may fail in any way
        raise CheckpointError(f"{path} is refused: {error}", _REFUSED) from error


def _shards(name: str, entry: Any, places: Mapping[Any, tuple[str, int, int]]) -> list[tuple[str, TensorInfo]]:
    """File and place of each shard of one tensor."""
    dtype, whole, shards = entry.properties.args[0], _numbers(entry.size), []
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype!r} is not a type of tensor")
    for chunk in entry.chunks:
        offsets, sizes = _numbers(chunk.offsets), _numbers(chunk.sizes)
        file, begin, end = places[name, offsets]
        info = TensorInfo(dtype_name(dtype), sizes, begin, end, offsets)
        if any(last > size for last, size in zip(info.end_offsets, whole, strict=True)):
            raise ValueError(f"{name!r} is {whole} and has {sizes} at {offsets}")
        shards.append((file, info))
    return shards


def _place(info: Any) -> tuple[str, int, int]:
    """File, and where the bytes begin and end."""
    if not isinstance(info, _Storage) or getattr(info, "transform_descriptors", None):
        raise ValueError("a tensor is stored in a way that is not known here")
    name, begin, length = str(info.relative_path), int(info.offset), int(info.length)
    if Path(name).name != name:
        raise ValueError(f"a tensor lies outside the folder: {name}")
    if begin < 0 or length < 0:
        raise ValueError(f"a tensor lies at byte {begin} and has {length}")
    return name, begin, begin + length


def _numbers(numbers: Any) -> tuple[int, ...]:
    found = tuple(int(number) for number in numbers)
    if any(not 0 <= number < 2**63 for number in found):
        raise ValueError(f"{found} are not sizes or places of a tensor")
    return found
