"""Exchanges between ranks that gradients flow back through.

Each is its partner's gradient: gathering pieces and summing them out again; moving rows and moving them back. One
implementation for CPU (gloo) and GPU (nccl). Shapes: n ranks of the group, d the dimension that is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Group = dist.ProcessGroup
Way = Callable[[Tensor, int, Group], Tensor]

# torch 2.13 has new names for these two, and warns of the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather(piece: Tensor, dim: int, group: Group) -> Tensor:
    """All ranks' pieces one after another along ``dim``; the gradient is summed over ranks and divided again."""
    return _Exchange.apply(piece, dim, group, _gathered, _summed_piece)


def sum_and_divide(whole: Tensor, dim: int, group: Group) -> Tensor:
    """The sum over ranks, of which each keeps its piece along ``dim``; the gradient is gathered."""
    return _Exchange.apply(whole, dim, group, _summed_piece, _gathered)


def move_rows(rows: Tensor, send: Sequence[Sequence[int]], counts: Sequence[int], group: Group) -> Tensor:
    """Rows to the ranks that compute with them.

    Args:
        rows: ``[R, ...]``, this rank's.
        send: for each rank, which of these rows go there, ascending; each row goes to one rank.
        counts: for each rank, how many rows come from there.

    Returns:
        the rows that came, in order of ranks. The gradient takes the way back.
    """
    return _MoveRows.apply(rows, [list(part) for part in send], list(counts), group)


def gather_bytes(tensors: Sequence[Sequence[Tensor]], group: Group) -> None:
    """Fill in what other ranks have: of each tensor its parts by rank, views of which this rank has its own; in place.

    One exchange for all of them, whatever their shapes and dtypes.
    """
    if not tensors:
        return
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    sizes = [sum(parts[r].numel() * parts[r].element_size() for parts in tensors) for r in range(ranks)]
    own = torch.cat([parts[rank].reshape(-1).view(torch.uint8) for parts in tensors])
    padded = own.new_zeros(max(sizes))
    padded[: len(own)] = own
    everyone = padded.new_empty(ranks, len(padded))
    _all_gather(everyone.view(-1), padded, group=group)
    for r in set(range(ranks)) - {rank}:
        places = [parts[r] for parts in tensors]
        arrived = everyone[r, : sizes[r]].split([place.numel() * place.element_size() for place in places])
        for place, values in zip(places, arrived, strict=True):
            place.copy_(values.clone().view(place.dtype).view(place.shape))


def _gathered(piece: Tensor, dim: int, group: Group) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = piece.new_empty(ranks * piece.shape[0], *piece.shape[1:])
    _all_gather(parts, piece.contiguous(), group=group)
    return parts if dim == 0 else torch.cat(parts.chunk(ranks), dim=dim)


def _summed_piece(whole: Tensor, dim: int, group: Group) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = torch.cat(whole.chunk(ranks, dim=dim)) if dim else whole.contiguous()
    piece = whole.new_empty([*whole.shape[:dim], whole.shape[dim] // ranks, *whole.shape[dim + 1 :]])
    _reduce_scatter(piece, parts, group=group)
    return piece


class _Exchange(Function):
    """``there``, and its gradient ``back``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, group: Group, there: Way, back: Way) -> Tensor:
        ctx.dim, ctx.group, ctx.back = dim, group, back
        return there(tensor, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.back(grads[0], ctx.dim, ctx.group), None, None, None, None


class _MoveRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[list[int]], counts: list[int], group: Group) -> Tensor:
        ctx.order = torch.tensor([row for part in send for row in part], device=rows.device)
        ctx.sent, ctx.counts, ctx.group = [len(part) for part in send], counts, group
        arrived = rows.new_empty(sum(counts), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows[ctx.order], counts, ctx.sent, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back = grads[0].new_empty(sum(ctx.sent), *grads[0].shape[1:])
        dist.all_to_all_single(back, grads[0].contiguous(), ctx.sent, ctx.counts, group=ctx.group)
        rows = torch.empty_like(back)
        rows[ctx.order] = back
        return rows, None, None, None
