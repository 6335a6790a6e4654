"""The ``torch_save`` format: torch's own distributed checkpoints (``.distcp`` and a pickled ``.metadata``).

An option, for exchange with other trainers; ``safetensors`` is the default. Its dangers stay outside:

- ``.metadata`` is a pickle. It is read by an unpickler that knows the names such a file needs and makes inert
  records of them; torch's objects are then built from checked values. Any other name is an error.
- Entries that are not tensors would be unpickled without limits by torch's planner. They are left out, and a
  planner that is asked for one anyway refuses.
- The tensors are read by ``torch.load(weights_only=True)``, which is how torch's reader does it.

Paths and random ids, which torch puts into the metadata, are left out: equal states give equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    FileSystemReader,
    FileSystemWriter,
    load,
    save,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.all_ranks import all_ranks
from automodel_cli.checkpoint.imports import closed_pickle
from automodel_cli.checkpoint.storage.local_shards import LocalShard, local_shard
from automodel_cli.checkpoint.storage.sharded import WholeTensor, compare
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

METADATA = ".metadata"


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        return None  # it would hold the absolute path and a random id


def save_tensors(tensors: Mapping[str, torch.Tensor], writer: StepWriter, folder: str) -> None:
    """Write ``folder/__0_0.distcp`` and ``folder/.metadata``; nothing when there are no tensors."""
    if not tensors:
        return
    with _one_process():
        save(dict(tensors), storage_writer=_Writer(writer.folder / folder, sync_files=True), no_dist=True)
    writer.adopt(folder)


def scan(reader: StepReader, folder: str) -> dict[str, WholeTensor]:
    """Names, types and shapes of the stored tensors.

    Raises:
        CheckpointError: the metadata is damaged or refused.
    """
    found = {
        name: WholeTensor(entry.properties.dtype, tuple(entry.size))
        for name, entry in _metadata(reader, folder).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    claimed = sum(math.prod(whole.shape) * whole.dtype.itemsize for whole in found.values())
    held = sum(layout.size_of(reader.folder / name) or 0 for name in reader.names(folder))
    if claimed > held:
        raise CheckpointError(
            f"{reader.folder / folder / METADATA} describes {claimed:,} bytes of tensors, the files hold {held:,}",
            layout.recovery_hint(reader.folder),
        )
    return found


def save_shards(
    shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World
) -> list[dict[str, Any]]:
    """Write what this rank has to write into ``folder/__RANK_0.distcp``; where each shard went, as JSON.

    All ranks' lists together are what :func:`finish` makes the metadata of. One process needs none: it writes as
    :func:`save_tensors` does.
    """
    if world.size == 1:
        save_tensors({name: shard.values for name, shard in shards.items()}, writer, folder)
        return []
    if not shards:
        return []
    name = f"__{world.rank}_0.distcp"
    places = []
    with writer.open(f"{folder}/{name}") as output:
        for tensor, shard in shards.items():
            content = io.BytesIO()
            torch.save(_compact(shard.values), content)
            place = {"file": name, "offset": output.num_bytes, "length": len(content.getbuffer())}
            output.write(content.getbuffer())
            chunk = {"offsets": shard.offsets, "sizes": list(shard.values.shape), "whole": shard.whole}
            places.append({"name": tensor, "dtype": _dtype_name(shard.values.dtype), **chunk, **place})
    return places


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, and a view without the rest of its storage, which ``torch.save`` would write too."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finish(places: list[list[dict[str, Any]]], writer: StepWriter, folder: str) -> None:
    """Write ``folder/.metadata`` from what every rank's :func:`save_shards` returned."""
    tensors: dict[str, Any] = {}
    storage = {}
    for place in (place for of_rank in places for place in of_rank):
        name, offsets = place["name"], _size(place["offsets"])
        properties = TensorProperties(dtype=closed_pickle.DTYPES[place["dtype"]])
        whole = TensorStorageMetadata(properties, _size(place["whole"]), [])
        chunks = tensors.setdefault(name, whole).chunks
        storage[MetadataIndex(name, offsets, len(chunks))] = _StorageInfo(
            place["file"], place["offset"], place["length"]
        )
        chunks.append(ChunkStorageMetadata(offsets, _size(place["sizes"])))
    if storage:
        made = Metadata(state_dict_metadata=tensors, storage_data=storage)
        writer.write_bytes(f"{folder}/{METADATA}", pickle.dumps(made))


def load_tensors(
    reader: StepReader,
    folder: str,
    targets: Mapping[str, torch.Tensor],
    *,
    cast: bool = False,
    world: World | None = None,
) -> None:
    """Read the tensors below ``folder`` into ``targets`` (the same set of names), after checking every hash.

    Every rank reads its own chunks; the ranks share the hashing of the files.

    Raises:
        CheckpointError: names, shapes or types differ, a file is damaged, or it holds anything but tensors.
    """
    world, what = world or World.single(), f"loading {reader.folder}"

    def check() -> None:
        for name in reader.names(folder)[world.rank :: world.size]:
            reader.check(name)

    def read() -> None:
        stored, path = scan(reader, folder), reader.folder / folder
        compare(path, stored, targets, cast=cast)
        _read(reader, folder, {name: local_shard(name, target) for name, target in targets.items()})

    all_ranks(world, check, what=what)  # before anything is unpickled
    all_ranks(world, read, what=what)


def _read(reader: StepReader, folder: str, regions: Mapping[str, LocalShard]) -> None:
    regions = {name: shard for name, shard in regions.items() if shard.values.numel()}
    if not regions:
        return
    path = reader.folder / folder
    try:
        with _one_process(), torch.no_grad():
            load(
                {name: shard.values for name, shard in regions.items()},
                storage_reader=_Reader(path, _metadata(reader, folder)),
                planner=_ChunkPlanner(regions),
                no_dist=True,
            )
    except CheckpointException as error:  # derives from BaseException
        reason = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"cannot read {path}: {reason}", "do not use this checkpoint") from error


class StoredTensors:
    """The tensors below a folder, one at a time: for who cannot hold them all. Hashes are not looked at."""

    def __init__(self, reader: StepReader, folder: str) -> None:
        self._reader, self._folder = reader, folder
        self.whole = scan(reader, folder)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, put together from wherever its shards lie, on the CPU."""
        tensor = torch.empty(self.whole[name].shape, dtype=self.whole[name].dtype)
        _read(self._reader, self._folder, {name: local_shard(name, tensor)})
        return tensor


def _metadata(reader: StepReader, folder: str) -> Metadata:
    name = f"{folder}/{METADATA}"
    if name not in reader.names(folder):  # an optimizer without any tensors
        return Metadata(state_dict_metadata={}, storage_data={})
    return parse_metadata(reader.read_bytes(name), reader.folder / name)


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Without torch's warning that there is only one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _Reader(FileSystemReader):
    """torch's reader, with metadata that has been read already."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class _ChunkPlanner(DefaultLoadPlanner):
    """Asks for the chunks of tensors that this rank holds, and for nothing else."""

    def __init__(self, regions: Mapping[str, LocalShard]) -> None:
        super().__init__()
        self._regions = regions

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items = []
        for name, shard in self._regions.items():
            chunk = ChunkStorageMetadata(_size(shard.offsets), _size(shard.values.shape))
            stored = self.metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata)
            items += create_read_items_for_chunk_list(name, stored, [chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._regions[index.fqn].values

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is not a tensor", "do not use this checkpoint")


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


class _Bytes(_Record): ...


_DCP = "torch.distributed.checkpoint.metadata"
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    (_DCP, "Metadata"): _Record,
    (_DCP, "TensorStorageMetadata"): _Tensor,
    (_DCP, "BytesStorageMetadata"): _Bytes,
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


def parse_metadata(content: bytes, path: Path) -> Metadata:
    """The tensors that a ``.metadata`` file lists; whatever else it lists is left out.

    Raises:
        CheckpointError: it is no such file, or names anything that such a file does not need.
    """
    try:
        record = closed_pickle.load(content, _ADMITTED)
        tensors = {
            str(name): entry
            for name, entry in record.state_dict_metadata.items()
            if isinstance(entry, _Tensor)
        }
        return Metadata(
            state_dict_metadata={name: _tensor_metadata(entry) for name, entry in tensors.items()},
            storage_data=dict(
                _storage_entry(index, info)
                for index, info in record.storage_data.items()
                if isinstance(index, _Index) and str(index.fqn) in tensors
            ),
        )
    except Exception as error:  # a hostile pickle may fail in any way
        raise CheckpointError(
            f"{path} is refused: {error}",
            "only a description of tensors is read from it: do not use this checkpoint unless you made it",
        ) from error


def _tensor_metadata(entry: Any) -> TensorStorageMetadata:
    dtype = entry.properties.args[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype!r} is not a type of tensor")
    chunks = [ChunkStorageMetadata(_size(chunk.offsets), _size(chunk.sizes)) for chunk in entry.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(entry.size), chunks)


def _storage_entry(index: Any, info: Any) -> tuple[MetadataIndex, _StorageInfo]:
    if not isinstance(info, _Storage) or getattr(info, "transform_descriptors", None):
        raise ValueError("a tensor is stored in a way that is not known here")
    name = str(info.relative_path)
    if Path(name).name != name:
        raise ValueError(f"a tensor lies outside the folder: {name}")
    place = MetadataIndex(str(index.fqn), _size(index.offset) if index.offset is not None else None)
    return place, _StorageInfo(name, int(info.offset), int(info.length))


def _size(numbers: Any) -> torch.Size:
    return torch.Size(int(number) for number in numbers)
