"""Pieces of matrices to the ranks that make them orthogonal, and the results back: one exchange each way.

Every rank holds a chunk of every weight. The owner of a matrix needs all of it: each piece comes from one of the ranks
that hold it, and the result goes to every rank whose chunk it touches. Whatever the mesh (shards, replicas of shards,
tensor parallel, all of them), it is one packed all-to-all each way; a rank that owns nothing sends and receives too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from automodel_cli.distributed.chunks import Chunk, intersection
from automodel_cli.train.muon.matrices import Matrix


@dataclass(frozen=True)
class Piece:
    """A part of a matrix that travels: the place of the matrix in the list, and the part's chunk of its weight."""

    matrix: int
    chunk: Chunk

    @property
    def elements(self) -> int:
        rows, columns = self.chunk[1]
        return rows * columns


Route = dict[int, list[Piece]]
"""The pieces to, or from, each rank that has any, in the order in which they travel."""


@dataclass
class Exchange:
    """What one rank sends and receives on the way to the owners and back.

    Attributes:
        send, receive: on the way to the owners; the way back is the other way round for ranks that need the result.
        answers, results: on the way back: what this rank's matrices give to others, what others' give to it.
    """

    send: Route = field(default_factory=dict)
    receive: Route = field(default_factory=dict)
    answers: Route = field(default_factory=dict)
    results: Route = field(default_factory=dict)

    @classmethod
    def plan(
        cls,
        matrices: Sequence[Matrix],
        owners: Sequence[int],
        held: Sequence[Sequence[Chunk]],
        needed: Sequence[Sequence[Chunk]],
        rank: int,
    ) -> Exchange:
        """The exchange of ``rank``, the same picture on all ranks.

        Args:
            held: for each weight, the chunk that each rank has of its momentum.
            needed: for each weight, the chunk of the update that each rank applies.
        """
        exchange = cls()
        for index, (matrix, owner) in enumerate(zip(matrices, owners, strict=True)):
            for chunk, source in _sources(held[matrix.weight], matrix.chunk, owner).items():
                piece = Piece(index, chunk)
                if rank == source:
                    exchange.send.setdefault(owner, []).append(piece)
                if rank == owner:
                    exchange.receive.setdefault(source, []).append(piece)
            for target, chunk in enumerate(needed[matrix.weight]):
                common = intersection(matrix.chunk, chunk)
                if common is None:
                    continue
                if rank == owner:
                    exchange.answers.setdefault(target, []).append(Piece(index, common))
                if rank == target:
                    exchange.results.setdefault(owner, []).append(Piece(index, common))
        return exchange

    @property
    def leaving(self) -> Iterable[Piece]:
        """What this rank sends to owners."""
        return itertools.chain.from_iterable(self.send.values())

    @property
    def answering(self) -> Iterable[Piece]:
        """What this rank's own matrices give, some of it to several ranks."""
        return dict.fromkeys(itertools.chain.from_iterable(self.answers.values()))

    def to_owners(self, pieces: Mapping[Piece, Tensor], like: Tensor) -> dict[Piece, Tensor]:
        """The pieces that this rank's matrices consist of; ``pieces`` are what it sends. All ranks call this."""
        return self._move(pieces, self.send, self.receive, like)

    def to_holders(self, pieces: Mapping[Piece, Tensor], like: Tensor) -> dict[Piece, Tensor]:
        """The parts of all matrices' updates that this rank applies; ``pieces`` are what its own give."""
        return self._move(pieces, self.answers, self.results, like)

    def _move(self, pieces: Mapping[Piece, Tensor], send: Route, receive: Route, like: Tensor) -> dict[Piece, Tensor]:
        ranks = range(dist.get_world_size())
        sizes = [[sum(piece.elements for piece in route.get(rank, ())) for rank in ranks] for route in (send, receive)]
        leaving = [pieces[piece].reshape(-1) for rank in ranks for piece in send.get(rank, ())]
        sent = torch.cat(leaving) if leaving else like.new_empty(0)
        arrived = like.new_empty(sum(sizes[1]))
        width = like.element_size()  # as bytes: not every backend knows bfloat16
        dist.all_to_all_single(
            arrived.view(torch.uint8),
            sent.view(torch.uint8),
            [size * width for size in sizes[1]],
            [size * width for size in sizes[0]],
        )
        order = [piece for rank in ranks for piece in receive.get(rank, ())]
        parts = arrived.split([piece.elements for piece in order]) if order else ()
        return {piece: part.view(piece.chunk[1]) for piece, part in zip(order, parts, strict=True)}


def _sources(held: Sequence[Chunk], wanted: Chunk, owner: int) -> dict[Chunk, int]:
    """The pieces of ``wanted`` and the rank that each comes from: the owner itself where it has it."""
    holders: dict[Chunk, list[int]] = {}
    for rank, chunk in enumerate(held):
        common = intersection(wanted, chunk)
        if common is not None:
            holders.setdefault(common, []).append(rank)
    return {chunk: owner if owner in ranks else ranks[owner % len(ranks)] for chunk, ranks in holders.items()}
