"""The weights of one rule over the ranks: what each rank makes orthogonal, and how the pieces come together.

Weights are chunks of ``DTensor`` (FSDP, its replicas, tensor parallel), or whole on every rank (one process, DDP);
their momentum is divided in any case. ``collect`` brings a rank its matrices, stacked by shape; ``spread`` brings the
results to whoever applies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from automodel_cli.distributed.chunks import Chunk, narrowed
from automodel_cli.distributed.grad_sync import local
from automodel_cli.distributed.placements import chunk_of
from automodel_cli.errors import ConfigError
from automodel_cli.train.muon.exchange import Exchange, Piece
from automodel_cli.train.muon.matrices import Matrix, by_shape, divide

Stacks = dict[tuple[int, int], Tensor]
"""Matrices by shape, ``[K, short, long]``."""

Part = tuple[Chunk, Tensor]
"""A part of an update: where it lies in this rank's chunk of the weight, and its values."""


class Team:
    """One rank among those that share weights.

    Args:
        parameters: the weights.
        matrices: what they consist of.
        mesh: all ranks, where every rank has all weights; None in one process.
        dtype: in which matrices are made orthogonal and travel.

    Attributes:
        mine: places in ``matrices`` of those that are this rank's, by their shape in a stack.

    Raises:
        ConfigError: the weights do not lie over all ranks.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        matrices: Sequence[Matrix],
        mesh: DeviceMesh | None,
        dtype: torch.dtype,
    ) -> None:
        self.matrices = matrices
        first = parameters[0]
        mesh = first.device_mesh if isinstance(first, DTensor) else mesh
        device = local(first).device if mesh is None else torch.device(mesh.device_type)
        self._empty = torch.empty(0, dtype=dtype, device=device)
        size = 1 if mesh is None else mesh.size()
        if size > 1 and size != dist.get_world_size():
            raise ConfigError(
                f"muon: a weight lies over {size} of {dist.get_world_size()} ranks, expected all",
                "choose a tp_plan that divides every matrix of a block, or another optimizer",
            )
        rank = dist.get_rank() if size > 1 else 0
        owners = divide(matrices, size)
        self.mine = {
            shape: kept
            for shape, places in by_shape(matrices).items()
            if (kept := [index for index in places if owners[index] == rank])
        }
        held = [chunks_by_rank(parameter, mesh, divided=True) for parameter in parameters]
        needed = [chunks_by_rank(parameter, mesh, divided=False) for parameter in parameters]
        self._held = [chunks[rank][0] for chunks in held]
        self._needed = [chunks[rank][0] for chunks in needed]
        self._exchange = Exchange.plan(matrices, owners, held, needed, rank) if size > 1 else None

    def collect(self, updates: Sequence[Tensor]) -> Stacks:
        """This rank's matrices from all ranks' chunks of the updates, one a weight. All ranks call this."""
        stacks = {shape: self._empty.new_empty(len(kept), *shape) for shape, kept in self.mine.items()}
        pieces = self._all if self._exchange is None else self._exchange.leaving
        given = {
            piece: narrowed(updates[weight], self._held[weight], piece.chunk)
            for piece in pieces
            for weight in [self.matrices[piece.matrix].weight]
        }
        if self._exchange is not None:
            given = self._exchange.to_owners({key: piece.to(self._empty) for key, piece in given.items()}, self._empty)
        for piece, values in given.items():
            self._part(stacks, piece).copy_(values)
        return stacks

    def spread(self, stacks: Stacks) -> list[list[Part]]:
        """For each weight, the parts of its update that this rank applies. All ranks call this."""
        pieces = self._all if self._exchange is None else self._exchange.answering
        given = {piece: self._part(stacks, piece) for piece in pieces}
        if self._exchange is not None:
            given = self._exchange.to_holders(given, self._empty)
        parts: list[list[Part]] = [[] for _ in self._needed]
        for piece, values in given.items():
            weight = self.matrices[piece.matrix].weight
            offsets, sizes = piece.chunk
            inner = tuple(at - begin for at, begin in zip(offsets, self._needed[weight], strict=True))
            parts[weight].append(((inner, sizes), values))
        return parts

    def share(self, vectors: Sequence[Tensor]) -> None:
        """Give every rank what the owner of each matrix has in ``vectors``, one a matrix; in place."""
        if self._exchange is None:
            return
        mine = {index for kept in self.mine.values() for index in kept}
        flat = torch.cat([v if index in mine else torch.zeros_like(v) for index, v in enumerate(vectors)])
        flat = flat.to(self._empty.device)
        dist.all_reduce(flat)  # zeros but for one rank
        for vector, shared in zip(vectors, flat.split([len(vector) for vector in vectors]), strict=True):
            vector.copy_(shared)

    @property
    def _all(self) -> list[Piece]:
        return [Piece(index, matrix.chunk) for index, matrix in enumerate(self.matrices)]

    def _part(self, stacks: Mapping[tuple[int, int], Tensor], piece: Piece) -> Tensor:
        """The view of a piece in the stacks, in the orientation of its weight."""
        matrix = self.matrices[piece.matrix]
        whole = stacks[matrix.stacked_shape][self.mine[matrix.stacked_shape].index(piece.matrix)]
        return narrowed(whole.mT if matrix.lies_across else whole, matrix.chunk[0], piece.chunk)


def chunks_by_rank(parameter: Tensor, mesh: DeviceMesh | None, *, divided: bool) -> list[Chunk]:
    """The chunk of a parameter that each rank of the world has; with ``divided`` that of its state."""
    shape = tuple(parameter.shape)
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        place = {int(rank): at.tolist() for at, rank in _coordinates(mesh)}
        return [chunk_of(shape, tuple(mesh.shape), place[rank], placements) for rank in range(mesh.size())]
    whole = (0,) * len(shape), shape
    if mesh is None:
        return [whole]
    ranks = range(mesh.size())
    return [row_chunk(shape, rank, mesh.size()) for rank in ranks] if divided else [whole for _ in ranks]


def row_chunk(shape: tuple[int, ...], rank: int, ranks: int) -> Chunk:
    """The rows that a rank keeps the state of, where all have the parameter."""
    return chunk_of(shape, (ranks,), (rank,), (Shard(0),))


def _coordinates(mesh: DeviceMesh) -> list[tuple[Tensor, int]]:
    """Place in the mesh and rank, for each rank."""
    places = torch.cartesian_prod(*(torch.arange(size) for size in mesh.shape)).view(mesh.size(), mesh.ndim)
    return [(place, int(rank)) for place, rank in zip(places, mesh.mesh.flatten().tolist(), strict=True)]
