"""Named tensors in a step folder: one plan of which shard lies where, and two ways to encode a shard.

``sharded`` writes safetensors, ``torch_save`` torch's distributed checkpoints (``checkpoint.model_save_format``). Both
say in :class:`StoredTensor` which bytes of which file hold which part of a tensor; what follows from that is here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from automodel_cli.checkpoint.all_ranks import all_ranks
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.local_shards import LocalShard, local_shard
from automodel_cli.checkpoint.storage.sharded import DTYPES
from automodel_cli.checkpoint.storage.step_files import InputFile, StepReader, StepWriter
from automodel_cli.checkpoint.storage.tensor_file import (
    ITEM_BYTES,
    Chunk,
    StoredTensor,
    TensorInfo,
    intersection,
)
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

SAVE_FORMATS = ("safetensors", "torch_save")
Piece = tuple[TensorInfo, LocalShard, Chunk]  # a stored shard, where it goes to, and what of it does


class TensorStorage(Protocol):
    """What a module that encodes tensors in a folder of a step has."""

    def save_shards(self, shards: Mapping[str, LocalShard], writer: StepWriter, folder: str, *, world: World) -> Any:
        """Write one rank's shards; JSON that :meth:`finish` gets of every rank."""

    def finish(self, notes: list[Any], writer: StepWriter, folder: str) -> None:
        """On rank 0, when all have written."""

    def scan(self, reader: StepReader, folder: str) -> dict[str, StoredTensor]:
        """Names, types and whole shapes, and where the shards lie."""

    def read_chunk(self, stream: InputFile, info: TensorInfo, region: LocalShard, common: Chunk) -> None:
        """Read what ``common`` has of the stored shard ``info`` into ``region``."""


def storage(save_format: str) -> TensorStorage:
    """The module that writes and reads that format.

    Raises:
        CheckpointError: there is none.
    """
    if save_format == "safetensors":
        return sharded
    if save_format == "torch_save":
        # torch.distributed.checkpoint takes a second to import
        from automodel_cli.checkpoint.storage import torch_save

        return torch_save
    raise CheckpointError(
        f"unknown save format {save_format!r}, expected one of {', '.join(SAVE_FORMATS)}",
        "a checkpoint of another format was written by a newer version of this program",
    )


def scan(reader: StepReader, folder: str) -> dict[str, StoredTensor]:
    """The tensors stored below ``folder``, from headers and metadata alone.

    Raises:
        CheckpointError: one cannot be read, or the shards of a tensor leave a gap; or a file is damaged.
    """
    with _damage_explains(reader, folder):
        return storage(reader.manifest["save_format"]).scan(reader, folder)


def read_tensor(reader: StepReader, stored: StoredTensor) -> torch.Tensor:
    """One tensor on the CPU, put together from wherever its shards lie; hashes are not looked at."""
    tensor = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    region, read_chunk = local_shard(stored.name, tensor), storage(reader.manifest["save_format"]).read_chunk
    for path, info in stored.shards:
        if math.prod(info.shape):
            with reader.open(path.relative_to(reader.folder).as_posix(), hashed=False) as stream:
                read_chunk(stream, info, region, info.chunk)
    return tensor


def load_tensors(
    reader: StepReader,
    folder: str,
    targets: Mapping[str, torch.Tensor],
    *,
    cast: bool = False,
    growing: Collection[str] = (),
    world: World | None = None,
) -> None:
    """Read the tensors below ``folder`` into ``targets`` (which must be the same set), checking every hash.

    Of a sharded target each rank reads its own chunk, wherever the chunks of the ranks that wrote lay. Each file is
    hashed by one rank: the one that wants most of it, which reads it in one pass and fills its targets from that;
    the others read the rows they need. No second copy of what is contiguous and on the CPU. When this raises, some
    targets may already hold what was read: throw them away.

    Raises:
        CheckpointError: names or shapes differ, types differ (unless ``cast``), or a file is damaged.
    """
    world, what = world or World.single(), f"loading {reader.folder}"
    plan: dict[str, list[Piece]] = {name: [] for name in reader.names(folder)}

    def prepare() -> list[int]:
        with _damage_explains(reader, folder):
            stored = scan(reader, folder)
            compare(reader.folder / folder, stored, targets, cast=cast, growing=growing)
        for name, target in targets.items():
            region = local_shard(name, target)
            for path, info in stored[name].shards:
                if (common := intersection(info.chunk, region.chunk)) is not None:
                    plan[path.relative_to(reader.folder).as_posix()].append((info, region, common))
        return [_num_bytes(pieces) for pieces in plan.values()]

    wanted = all_ranks(world, prepare, what=what)
    all_ranks(world, lambda: _read_files(reader, plan, wanted, world.rank), what=what)


def _num_bytes(pieces: Iterable[Piece]) -> int:
    return sum(math.prod(common[1]) * ITEM_BYTES[info.dtype] for info, _, common in pieces)


def _read_files(reader: StepReader, plan: Mapping[str, list[Piece]], wanted: Sequence[list[int]], rank: int) -> None:
    """One rank's share: its own pieces, and the hashes of the files that fall to it."""
    read_chunk = storage(reader.manifest["save_format"]).read_chunk
    with torch.no_grad():
        for number, (name, pieces) in enumerate(plan.items()):
            is_checker = _checker([of_rank[number] for of_rank in wanted], number) == rank
            if is_checker or pieces:
                with reader.open(name, hashed=is_checker) as stream:
                    for piece in sorted(pieces, key=lambda piece: piece[0].begin):
                        read_chunk(stream, *piece)


def _checker(wants: Sequence[int], number: int) -> int:
    """The rank that hashes a file: one of those that want most of it, in turn where several do."""
    eager = [rank for rank, want in enumerate(wants) if want == max(wants)]
    return eager[number % len(eager)]


@contextlib.contextmanager
def _damage_explains(reader: StepReader, folder: str) -> Iterator[None]:
    """Headers are read before their file's hash is known: when they do not fit, damage is the first reason."""
    try:
        yield
    except CheckpointError:
        for name in reader.names(folder):
            reader.check(name)
        raise


def compare(
    path: Path,
    stored: Mapping[str, StoredTensor] | Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    *,
    cast: bool,
    growing: Collection[str] = (),
) -> None:
    """Refuse stored tensors that cannot fill ``targets``; of those in ``growing`` rows may be missing at the end.

    Raises:
        CheckpointError: names are missing or left over, shapes differ, or (unless ``cast``) types.
    """
    missing, unknown = targets.keys() - stored.keys(), stored.keys() - targets.keys()
    if missing or unknown:
        found = [f"lacks {len(missing)} of {len(targets)} tensors: {_some(missing)}"] if missing else []
        found += [f"holds {len(unknown)} that this run has not: {_some(unknown)}"] if unknown else []
        raise CheckpointError(f"{path} {'; '.join(found)}", "the model or optimizer is not the one that was saved")
    for name, one in stored.items():
        shape, target = tuple(one.shape), targets[name]
        dtype = DTYPES[one.dtype] if isinstance(one, StoredTensor) else one.dtype
        grows = name in growing and len(shape) == target.dim() and shape[0] <= target.shape[0]
        if shape[grows:] != tuple(target.shape)[grows:]:
            raise CheckpointError(
                f"{path}: {name!r} is stored as {list(shape)}, this run has {list(target.shape)}",
                "the model is not the one that was saved",
            )
        if not cast and dtype != target.dtype:
            raise CheckpointError(
                f"{path}: {name!r} is stored as {dtype}, this run has {target.dtype}",
                "use the precision that the run was started with",
            )


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names) - limit} more)" if len(names) > limit else "")
